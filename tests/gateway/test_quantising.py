"""A smaller model as a job: made, kept by its hash, registered with the settings of the first, and it answers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from localllm.gateway import database, quantising
from localllm.gateway.jobs import JobRunner
from localllm.gateway.models import Job, LanguageModel
from localllm.gateway.registration import STARTER, register
from localllm.inference.errors import ModelRefused
from localllm.inference.providers.llamacpp import LlamaCpp
from localllm.inference.types import ChatRequest, Chunk, Message, SamplingParams
from tests.gguf_files import STARTER as STARTER_PATH

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio]

NEVER = 3600.0


@pytest.fixture
async def model(settings: Settings, tmp_path: Path) -> LanguageModel:
    settings.HOME = tmp_path
    return await register(STARTER_PATH, name="starter-q8_0", **STARTER)


@pytest.fixture
async def runner(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JobRunner]:
    runner = JobRunner(NEVER)
    monkeypatch.setattr("localllm.gateway.jobs.runner", runner)
    await runner.start({quantising.KIND: quantising.run})
    yield runner
    await runner.drain(5)


async def until(job: Job, *states: str) -> Job:
    async with asyncio.timeout(60):
        while job.state not in states:
            await asyncio.sleep(0.02)
            job = await database.read(Job.objects.get, pk=job.pk)
    return job


async def answer(model: LanguageModel) -> str:
    provider = LlamaCpp()
    request = ChatRequest(
        messages=model.with_system_prompt((Message("user", "Who are you?"),)), params=SamplingParams(temperature=0)
    )
    async with aclosing(provider.stream(model.local(), request)) as events:
        text = "".join([event.text async for event in events if isinstance(event, Chunk)])
    await provider.aclose()
    return text


async def test_a_smaller_model_is_made_registered_and_answers(
    runner: JobRunner, model: LanguageModel, tmp_path: Path
) -> None:
    job = await until(await quantising.request(model, "Q4_K_M"), *Job.OVER)
    assert (job.state, job.error, job.num_done, job.num_total) == ("complete", "", 56, 56)
    made = await database.read(LanguageModel.objects.get, pk=job.parameters["made"])
    assert (made.name, made.title) == ("starter-q4_k_m", "LocalLLM Starter 3M Q4_K_M")
    assert (made.system_prompt, made.n_ctx, made.temperature) == (model.system_prompt, 1024, 0.3)
    assert made.description.endswith("Q4_K_M") and not made.is_default
    assert made.path == str(tmp_path / f"models/{made.sha256}.gguf")
    assert hashlib.sha256(Path(made.path).read_bytes()).hexdigest() == made.sha256
    assert "LocalLLM" in await answer(made)


async def test_a_cancelled_one_leaves_nothing(runner: JobRunner, model: LanguageModel, tmp_path: Path) -> None:
    job = await until(await quantising.request(model, "Q4_K_M"), "running")
    await database.write(job.cancel)
    runner.wake()
    await runner.drain(5)
    assert list((tmp_path / "models").glob("*")) == []
    assert await database.read(LanguageModel.objects.count) == 1


async def test_one_that_was_interrupted_begins_anew(runner: JobRunner, model: LanguageModel) -> None:
    job = await until(await quantising.request(model, "Q4_K_M"), "running")
    await runner.drain(5)
    again = JobRunner(NEVER)
    await again.start({quantising.KIND: quantising.run})
    assert (await until(job, *Job.OVER)).state == "complete"
    await again.drain(5)


async def test_who_asks_for_the_same_again_shares_the_job(model: LanguageModel) -> None:
    first = await quantising.request(model, "Q4_K_M")
    assert await quantising.request(model, "Q4_K_M") == first
    assert await quantising.request(model, "Q5_K_M") != first


async def test_what_cannot_be_made_is_refused_at_once(model: LanguageModel) -> None:
    with pytest.raises(ModelRefused, match="cannot be made into “Q8_0”"):
        await quantising.request(model, "Q8_0")
    assert not await database.read(Job.objects.exists)


async def test_a_model_that_is_gone_fails_the_job(model: LanguageModel, runner: JobRunner) -> None:
    await runner.drain(5)
    job = await quantising.request(model, "Q4_K_M")
    await database.write(model.delete)
    await runner.start({quantising.KIND: quantising.run})
    assert (await until(job, *Job.OVER)).error == "The model it was to be made of has been deleted."
