"""Models in one budget of memory, on real workers: who is loaded, who makes room, who takes over."""

import asyncio
import os
import shutil
import signal
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec.structs import replace as replace_settings

from localllm.inference.engine import devices
from localllm.inference.engine.gguf import read_header
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import NoRoom, ProviderError
from localllm.inference.memory import account, this_machine
from localllm.inference.providers.llamacpp import LlamaCpp, LocalModel
from localllm.inference.types import ChatRequest, Chunk, Finished, Loading, Message, SamplingParams
from tests.inference.engine_on_starter import STARTER
from tests.inference.test_probe import with_template

SETTINGS = EngineSettings(n_ctx=1024, num_slots=4)
ONE = account(read_header(STARTER), SETTINGS, this_machine()).used_bytes
LONG = SamplingParams(temperature=99.0, top_p=1.0, min_p=0.0, top_k=0, max_tokens=200, seed=1)


@pytest.fixture
async def provider():
    """Room for two copies of the starter."""
    provider = LlamaCpp(memory_bytes=int(2.5 * ONE))
    yield provider
    await provider.aclose()


@pytest.fixture
def models(tmp_path):
    """Three files with a name each."""
    paths = [Path(shutil.copy(STARTER, tmp_path / f"{name}.gguf")) for name in ("ann", "bob", "cid")]
    return [LocalModel(path, SETTINGS, name=path.stem) for path in paths]


def states(provider, models):
    return [provider.state(model).state for model in models]


async def ask(provider, model, params=LONG):
    request = ChatRequest(messages=(Message("user", "Tell me all."),), params=params)
    async with aclosing(provider.stream(model, request)) as events:
        return [event async for event in events]


@asynccontextmanager
async def answering(provider, model):
    """Inside, the model stands still in the middle of an answer; afterwards the answer is complete."""
    has_begun = asyncio.Event()

    async def read():
        request = ChatRequest(messages=(Message("user", "Go on."),), params=LONG)
        async with aclosing(provider.stream(model, request)) as events:
            async for event in events:
                if isinstance(event, Chunk):
                    has_begun.set()
        return event

    reading = asyncio.create_task(read())
    await has_begun.wait()
    pid = provider.state(model).pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield reading
    finally:
        os.kill(pid, signal.SIGCONT)
    assert isinstance(await reading, Finished)


async def until(is_so):
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.01)


# The budget


async def test_two_models_are_loaded_side_by_side_and_the_third_takes_the_place_of_the_one_unused_for_longest(
    provider, models
):
    ann, bob, cid = models
    await provider.load(ann)
    await provider.load(bob)
    await provider.load(ann)
    await provider.load(cid)
    assert states(provider, models) == ["ready", "stopped", "ready"]


async def test_a_model_that_is_answering_is_never_unloaded(provider, models):
    ann, bob, cid = models
    await provider.load(bob)
    async with answering(provider, ann):
        await provider.load(bob)
        await provider.load(cid)
        assert states(provider, models) == ["ready", "stopped", "ready"]


async def test_who_finds_no_room_hears_who_holds_it(provider, models):
    ann, bob, cid = models
    async with answering(provider, ann), answering(provider, bob):
        with pytest.raises(NoRoom, match=r"cid needs \d+ MB .* ann \(\d+ MB\), bob \(\d+ MB\) are in use") as caught:
            await ask(provider, cid)
        assert not caught.value.permanent and caught.value.retry_after_s > 0


async def test_models_asked_for_at_once_do_not_all_get_the_last_room(provider, models):
    results = await asyncio.gather(*(ask(provider, model) for model in models), return_exceptions=True)
    assert [type(result) for result in results].count(NoRoom) == 1
    assert provider.held_bytes <= provider.budget_bytes


async def test_a_model_that_never_fits_is_refused_with_both_numbers(models):
    provider = LlamaCpp(memory_bytes=20_000_000)
    with pytest.raises(ProviderError, match=r"needs \d+ MB .* may take 20 MB") as caught:
        await ask(provider, models[0])
    assert caught.value.permanent and provider.state(models[0]).state == "refused"


async def test_the_measured_need_takes_the_place_of_the_told_one(provider, models):
    ann, bob, _ = models
    await provider.load(replace(ann, measured_bytes=2 * ONE))
    await provider.load(bob)
    assert states(provider, [ann, bob]) == ["stopped", "ready"]


# The GPU


@pytest.fixture
def with_gpu(monkeypatch):
    """The machine seems to have one; but no memory of it can be had."""
    monkeypatch.setattr(devices, "DEVICE_FILES", ("/dev/null",))


async def test_without_room_on_the_gpu_a_model_is_loaded_and_tried_without_it(with_gpu, provider, models):
    await provider.load(models[0])
    assert provider.loaded(models[0]).settings.n_gpu_layers == 0
    assert await provider.placed(models[0].path, SETTINGS) == replace_settings(SETTINGS, n_gpu_layers=0)
    assert models[0].settings.n_gpu_layers == -1 and await ask(provider, models[0])


async def test_without_a_gpu_llama_cpp_is_told_what_was_set(provider, models, monkeypatch):
    monkeypatch.setattr(devices, "DEVICE_FILES", ())
    assert await provider.placed(models[0].path, SETTINGS) == SETTINGS


# Loading and unloading


async def test_who_asks_first_sees_it_loading(provider, models):
    events = await ask(provider, models[0])
    assert isinstance(events[0], Loading) and isinstance(events[-1], Finished)


async def test_its_state_says_what_it_takes_and_holds(provider, models):
    await provider.load(models[0])
    now = provider.state(models[0])
    assert (now.window, now.num_slots, now.num_requests, now.needed_bytes) == (1024, 4, 0, ONE)
    assert now.resident_bytes > 50e6 and now.pid and now.loaded_since <= now.last_used


async def test_it_is_unloaded_after_its_keep_alive(provider, models):
    model = replace(models[0], keep_alive_s=0.2)
    await ask(provider, model, SamplingParams(max_tokens=1))
    assert provider.state(model).state == "ready"
    await until(lambda: provider.state(model).state == "stopped")


async def test_without_a_keep_alive_it_stays(provider, models):
    await ask(provider, replace(models[0], keep_alive_s=0.1), SamplingParams(max_tokens=1))
    await provider.load(models[0])
    await asyncio.sleep(0.3)
    assert provider.state(models[0]).state == "ready"


async def test_unloading_lets_the_answer_end_first(provider, models):
    async with answering(provider, models[0]):
        await provider.unload(models[0])
        assert provider.state(models[0]).state == "ending"
    await until(lambda: provider.state(models[0]).state == "stopped")


async def test_to_count_tokens_keeps_no_model_that_is_to_go(provider, models):
    async with answering(provider, models[0]):
        await provider.unload(models[0])
        counted = asyncio.create_task(provider.count_texts(models[0], ["How long is this?"]))
        await asyncio.sleep(0)
        assert provider.state(models[0]).state == "ending"
    assert await counted
    await until(lambda: provider.state(models[0]).state == "stopped")


async def test_a_model_that_is_asked_again_before_it_ended_stays(provider, models):
    async with answering(provider, models[0]):
        await provider.unload(models[0])
        asked = asyncio.create_task(ask(provider, models[0], SamplingParams(max_tokens=1)))
        await asyncio.sleep(0)
    await asked
    assert provider.state(models[0]).state == "ready"


async def test_a_cancelled_load_fails_its_requests_with_a_sentence(provider, models):
    asked = asyncio.create_task(ask(provider, models[0]))
    await until(lambda: provider.state(models[0]).state == "loading")
    assert await provider.cancel_load(models[0])
    with pytest.raises(ProviderError, match="Loading ann was cancelled"):
        await asked
    assert provider.state(models[0]).state == "stopped" and await ask(provider, models[0])


async def test_a_loaded_model_is_not_cancelled(provider, models):
    await provider.load(models[0])
    assert not await provider.cancel_load(models[0])


async def test_the_reason_of_a_refusal_stays_to_be_read(provider, models):
    models[0].path.write_bytes(b"GGUF")
    with pytest.raises(ProviderError, match=r"ann\.gguf"):
        await ask(provider, models[0])
    assert "ann.gguf" in provider.state(models[0]).error
    shutil.copy(STARTER, models[0].path)
    assert await ask(provider, models[0])


# Taking over


async def test_new_settings_get_a_new_worker_and_the_old_one_ends_with_its_answer(provider, models):
    old, new = models[0], replace(models[0], settings=EngineSettings(n_ctx=512, num_slots=2))
    async with answering(provider, old):
        await ask(provider, new, SamplingParams(max_tokens=1))
        assert states(provider, [old, new]) == ["ending", "ready"]
    await until(lambda: states(provider, [old, new]) == ["stopped", "ready"])


async def test_where_both_have_no_room_the_new_one_waits_for_the_last_answer_of_the_old(models):
    provider = LlamaCpp(memory_bytes=int(1.5 * ONE))
    old, new = models[0], replace(models[1], name="ann")
    async with answering(provider, old) as answer:
        asked = asyncio.create_task(ask(provider, new, SamplingParams(max_tokens=1)))
        await until(lambda: provider.state(new).state == "waiting")
        assert not answer.done()
    assert isinstance((await asked)[-1], Finished) and states(provider, [old, new]) == ["stopped", "ready"]
    await provider.aclose()


# Measuring


async def test_it_measures_memory_and_speed(provider, models):
    found = await provider.measure(models[0])
    assert found.predicted_bytes == pytest.approx(found.measured_bytes, rel=0.1)
    assert min(found.prefill_per_s, found.decode_per_s, found.load_s) > 0


async def test_a_request_does_not_wait_for_the_measurement(provider, models):
    await provider.load(models[0])
    measuring = asyncio.create_task(provider.measure(models[0]))
    await asyncio.sleep(0)
    assert await ask(provider, models[0])
    assert not measuring.done()
    assert (await measuring).decode_per_s > 0


async def test_measuring_changes_no_answer(provider, models, tmp_path):
    greedy = SamplingParams(temperature=0.0, max_tokens=50)
    fresh = LocalModel(with_template(tmp_path / "a.gguf", "{{ messages[0].content }}"), SETTINGS)
    before = [event.text for event in await ask(provider, fresh, greedy) if isinstance(event, Chunk)]
    await provider.measure(fresh)
    after = [event.text for event in await ask(provider, fresh, greedy) if isinstance(event, Chunk)]
    assert before == after
