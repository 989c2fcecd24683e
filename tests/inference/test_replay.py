"""Replays on the real engine: the same tokens again, or the first that differs, in context."""

from contextlib import aclosing

import pytest
import pytest_asyncio

from localllm.inference.engine.host import EngineHost
from localllm.inference.engine.replay import Recording, Replayed, replay, spelled
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import ProviderError
from localllm.inference.json_schema.grammar import compile_schema
from localllm.inference.types import ChatRequest, Chunk, Message, ResponseFormat, SamplingParams, Started
from tests.inference.engine_on_starter import STARTER, SYSTEM
from tests.inference.test_thinking import thinking_starter

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = EngineSettings(n_ctx=1024, num_slots=4)
SCHEMA = '{"type": "object", "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {}}}}'


async def record(text="Who are you?", *, path=STARTER, schema=None, **params):
    """What a worker that serves four slots says, with a cold cache."""
    compiled = compile_schema(schema) if schema else None
    format = compiled and ResponseFormat(
        schema=schema, digest=compiled.digest, grammar=compiled.grammar, examples=compiled.examples
    )
    request = ChatRequest(
        messages=(Message("system", SYSTEM), Message("user", text)),
        params=SamplingParams(**{"temperature": 0.0, "seed": 7, "max_tokens": 60, **params}),
        response_format=format,
    )
    host = EngineHost(path, SETTINGS)
    host.start()
    prompt_ids, output_ids = (), []
    try:
        async with aclosing(host.stream(request)) as events:
            async for event in events:
                match event:
                    case Started(prompt_ids=ids):
                        prompt_ids = ids
                    case Chunk(token_ids=ids):
                        output_ids += ids
    finally:
        await host.stop()
    return Recording(
        path=str(path), settings=SETTINGS, request=request, prompt_ids=prompt_ids, output_ids=tuple(output_ids)
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def recording():
    return await record()


async def result(recording, **changes):
    fields = {name: getattr(recording, name) for name in Recording.__struct_fields__}
    async with aclosing(replay(Recording(**fields | changes))) as steps:
        *_, last = [step async for step in steps]
    assert isinstance(last, Replayed)
    return last


@pytest.mark.parametrize(
    "params",
    [{}, {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}, {"repeat_penalty": 1.3, "stop": ("model",)}],
    ids=["greedy", "sampled", "penalised, with a stop string"],
)
async def test_it_repeats_a_generation_token_by_token(params):
    recording = await record(**params)
    done = await result(recording)
    assert done.difference is None and done.num_tokens == len(recording.output_ids) > 5


async def test_it_repeats_an_answer_by_a_schema_that_was_closed_by_its_budget():
    recording = await record(schema=SCHEMA, temperature=2.0, max_tokens=24)
    done = await result(recording)
    assert done.difference is None and done.num_tokens == len(recording.output_ids) > 5


async def test_it_repeats_what_a_thinking_model_reasons_before_its_data(tmp_path):
    recording = await record(path=thinking_starter(tmp_path / "thinking.gguf"), schema=SCHEMA, temperature=1.5)
    done = await result(recording)
    assert done.difference is None and done.num_tokens == len(recording.output_ids) > 5


async def test_it_finds_the_first_token_that_differs_and_shows_both_in_context(recording):
    output = list(recording.output_ids)
    output[5] = output[0]
    found = (await result(recording, output_ids=tuple(output))).difference
    assert found.at == 5 and (found.logged.id, found.replayed.id) == (output[0], recording.output_ids[5])
    assert found.replayed.probability > 0.3 > found.logged.probability
    (begun,) = await spelled(STARTER, recording.output_ids[:5])
    assert found.before.endswith(f"<|im_start|>assistant\n{begun}") and found.replayed_after and found.logged_after


async def test_another_seed_differs_at_some_token():
    wild = {"temperature": 9.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 20}
    other = ChatRequest(messages=(), params=SamplingParams(**wild, seed=8))
    assert (await result(await record(**wild), request=other)).difference is not None


async def test_an_answer_that_was_stopped_is_compared_so_far(recording):
    done = await result(recording, output_ids=recording.output_ids[:4], is_cut=True)
    assert done.difference is None and done.num_tokens == 4


async def test_an_answer_that_goes_on_after_the_logged_end_differs_there(recording):
    found = (await result(recording, output_ids=recording.output_ids[:4])).difference
    assert found.at == 4 and found.logged is None and found.replayed.id == recording.output_ids[4]


async def test_it_spells_control_tokens_out(recording):
    prompt, answer = await spelled(STARTER, recording.prompt_ids, recording.output_ids)
    assert prompt.startswith(f"<|endoftext|><|im_start|>system\n{SYSTEM}<|im_end|>") and answer.endswith("<|im_end|>")


async def test_a_file_that_is_no_model_is_refused_in_words(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(ProviderError, match="cannot load the vocabulary of broken"):
        await spelled(tmp_path / "broken.gguf", (1, 2))
