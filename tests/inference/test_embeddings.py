"""Texts become vectors on the real engine: the same alone and in company, in order, and never cut."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from gguf import PoolingType

from localllm.inference.engine.gguf import read_header
from localllm.inference.engine.host import EngineHost
from localllm.inference.engine.probe import probe
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import ContextOverflow, ModelRefused, ProviderError
from localllm.inference.providers.llamacpp import LlamaCpp, LocalModel
from localllm.inference.types import ChatRequest, Embedding, Message
from tests.gguf_files import STARTER, WIDTH, WINDOW, WORDS, bert, starter_with

SETTINGS = EngineSettings(n_threads=1)
TEXTS = ["the cat sat on the mat", "a ship sails far away", "hello", "how are you, red dog?"]


def by_mean(path: Path) -> Path:
    return bert(path)


def by_first(path: Path) -> Path:
    return bert(path, PoolingType.CLS)


def by_last(path: Path) -> Path:
    """A model that reads from left to right."""
    return starter_with(path, llama__pooling_type=int(PoolingType.LAST))


@pytest.fixture(params=[by_mean, by_first, by_last])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path: Path = request.param(tmp_path / "embeddings.gguf")
    return path


@pytest.fixture
async def provider() -> AsyncIterator[LlamaCpp]:
    provider = LlamaCpp()
    yield provider
    await provider.aclose()


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[EngineHost]:
    host = EngineHost(bert(tmp_path / "embeddings.gguf"), SETTINGS)
    host.start()
    yield host
    await host.stop()


def distance(one: Embedding, other: Embedding) -> float:
    return float(np.linalg.norm(np.subtract(one.vector, other.vector)))


def test_the_header_says_how_it_pools(file: Path) -> None:
    assert read_header(file).is_embedding
    assert not read_header(STARTER).is_embedding


def test_an_encoder_that_does_not_say_how_it_pools_takes_the_mean(tmp_path: Path) -> None:
    assert read_header(bert(tmp_path / "m.gguf", PoolingType.NONE)).pooling == "mean"


def test_a_reranker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="scores pairs of texts"):
        read_header(bert(tmp_path / "m.gguf", PoolingType.RANK))


async def test_it_is_probed_by_making_vectors(file: Path) -> None:
    report = await probe(file, settings=SETTINGS)
    assert report.header.is_embedding and report.tokens_per_s > 0


async def test_a_text_has_the_same_vector_alone_and_in_a_batch(provider: LlamaCpp, file: Path) -> None:
    model = LocalModel(file, SETTINGS)
    together = await provider.embed(model, TEXTS * 30)
    for text, one in zip(TEXTS * 30, together, strict=True):
        (alone,) = await provider.embed(model, [text])
        assert distance(one, alone) < 0.03  # quantised weights round by the size of the batch
        assert (one.num_tokens, np.linalg.norm(one.vector)) == (alone.num_tokens, pytest.approx(1))
    assert min(distance(one, other) for one in together[:4] for other in together[:4] if one is not other) > 0.01


async def test_many_who_ask_at_once_get_their_own(host: EngineHost) -> None:
    expected = await host.embed(TEXTS)
    answers = await asyncio.gather(*(host.embed([text]) for text in TEXTS * 5), host.embed(TEXTS * 40))
    for (answer,), wanted in zip(answers[:-1], expected * 5, strict=True):
        assert distance(answer, wanted) < 1e-3
    assert len(answers[-1]) == len(TEXTS) * 40


async def test_texts_that_fill_the_window_fit_and_one_more_word_is_an_error(host: EngineHost) -> None:
    words = WORDS * 5
    (full,) = await host.embed([" ".join(words[: WINDOW - 2])])  # and one token at each end
    assert (full.num_tokens, len(full.vector)) == (WINDOW, WIDTH)
    with pytest.raises(ContextOverflow, match="65 tokens, but this model reads from 1 to 64"):
        await host.embed(["hello", " ".join(words[: WINDOW - 1])])


async def test_a_megabyte_is_refused_by_its_size(host: EngineHost) -> None:
    with pytest.raises(ContextOverflow, match="1000000 bytes"):
        await host.embed(["a" * 1_000_000])


async def test_no_texts_make_no_vectors(host: EngineHost) -> None:
    assert await host.embed([]) == []
    assert [one.num_tokens for one in await host.embed([""])] == [2]


async def test_it_outlives_the_death_of_its_worker(provider: LlamaCpp, tmp_path: Path) -> None:
    model = LocalModel(bert(tmp_path / "m.gguf"), SETTINGS)
    (before,) = await provider.embed(model, TEXTS[:1])
    host = provider.loaded(model)
    assert host is not None and host.pid is not None
    asked = asyncio.create_task(provider.embed(model, TEXTS * 200))
    await asyncio.sleep(0)
    os.kill(host.pid, signal.SIGKILL)
    assert distance((await asked)[0], before) < 1e-3
    assert host.num_restarts == 1


async def test_it_goes_on_after_one_who_left(host: EngineHost) -> None:
    gone = asyncio.create_task(host.embed(TEXTS * 200))
    await asyncio.sleep(0.05)
    gone.cancel()
    assert len(await host.embed(TEXTS)) == 4
    assert host.num_requests == 0


async def test_it_writes_no_answers(host: EngineHost) -> None:
    with pytest.raises(ProviderError, match="makes embeddings of texts and writes no answers"):
        async with aclosing(host.stream(ChatRequest(messages=(Message("user", "Hello"),)))) as events:
            async for _ in events:
                pass


async def test_a_model_that_answers_makes_no_vectors(provider: LlamaCpp) -> None:
    with pytest.raises(ProviderError, match="makes no embeddings"):
        await provider.embed(LocalModel(STARTER, SETTINGS), ["hello"])


async def test_it_does_not_test_itself_between_two_requests(host: EngineHost) -> None:
    measuring = asyncio.create_task(host.measure())
    for text in TEXTS * 3:
        await host.embed([text])
    assert not measuring.done()
    assert (await measuring).prefill_per_s > 0


async def test_it_measures_its_speed_beside_requests(host: EngineHost) -> None:
    await host.wait_until_ready()
    speed, texts = await asyncio.gather(host.measure(), host.embed(TEXTS * 10))
    assert speed.prefill_per_s > 0 and len(texts) == 40
