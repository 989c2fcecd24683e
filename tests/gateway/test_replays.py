"""Replays from the usage log, on the real engine: what is repeated, and what is said when something is gone."""

import asyncio
import shutil
from contextlib import aclosing

import pytest
import pytest_asyncio
from django.contrib.auth.models import User

from localllm.gateway import completions, database, providers, replays, structured
from localllm.gateway.models import LanguageModel, LoggedSchema, Replay, UsageLog
from localllm.gateway.models.usage import pack_ids, unpack_ids
from localllm.inference.errors import InferenceError
from localllm.inference.types import ChatRequest, Message, SamplingParams, Started
from tests.inference.engine_on_starter import STARTER, SYSTEM

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio(loop_scope="module")]

SCHEMA = '{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}'


@pytest_asyncio.fixture(autouse=True, scope="module", loop_scope="module")
async def engines_end():
    yield
    await providers.local.aclose()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return shutil.copy(STARTER, tmp_path_factory.mktemp("models") / "copy.gguf")


@pytest.fixture(autouse=True)
def model(transactional_db, path):
    return LanguageModel.objects.register(path, name="copy", make_default=True, system_prompt=SYSTEM, n_ctx=512)


@pytest.fixture
def alice(transactional_db):
    return User.objects.create(username="alice")


def question(text, owner="alice", **params):
    sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": 40, **params})
    return ChatRequest(messages=(Message("system", SYSTEM), Message("user", text)), params=sampling, owner=owner)


async def generate(model, request, then=None):
    """Answer through the one door, and return the row of the log."""
    async with aclosing(completions.stream(request, model, completions.Asker(source="api"))) as events:
        async for event in events:
            if then and isinstance(event, Started):
                then, kill = None, then
                await kill()
    return await database.read(lambda: UsageLog.objects.latest("created_at"))


async def replayed(generation, alice):
    row = await database.write(Replay.objects.request, generation, alice)
    await database.write(row.job.begin)
    await replays.run(row.job)
    return await database.read(Replay.objects.get, pk=row.pk)


async def cold(model):
    await providers.local.unload(model.local())


@pytest.mark.parametrize("params", [{}, {"temperature": 1.4, "top_k": 0, "seed": 3}], ids=["greedy", "seeded"])
async def test_a_logged_generation_is_repeated_exactly(model, alice, params):
    await cold(model)
    row = await replayed(await generate(model, question("What can you do?", **params)), alice)
    assert row.is_match and row.result["num_tokens"] > 5 and row.notes == []


async def test_a_seed_that_was_drawn_is_in_the_record_too(model, alice):
    await cold(model)
    assert (await replayed(await generate(model, question("Who are you?", temperature=2.0)), alice)).is_match


async def test_data_by_a_schema_are_repeated_exactly(model, alice):
    await cold(model)
    schema = await structured.compiler.compile(SCHEMA)
    asked = question("Maya is 31.", temperature=1.5, seed=5, max_tokens=60)
    async with aclosing(structured.stream(asked, schema, model, completions.Asker(source="api"))) as items:
        async for _ in items:
            pass
    generation = await database.read(lambda: UsageLog.objects.latest("created_at"))
    assert (await replayed(generation, alice)).is_match


async def test_a_schema_is_kept_once_and_its_loss_is_said(model, alice):
    schema = await structured.compiler.compile(SCHEMA)
    for text in ("Maya is 31.", "Ada is 36."):
        async with aclosing(
            structured.stream(question(text, max_tokens=60), schema, model, completions.Asker(source="api"))
        ) as items:
            async for _ in items:
                pass
    kept = await database.read(LoggedSchema.objects.get)
    assert kept.digest == schema.digest and kept.response_format.grammar == schema.grammar
    await database.write(kept.delete)
    with pytest.raises(InferenceError, match="The schema that this was decoded by is not known any more"):
        await replayed(await database.read(lambda: UsageLog.objects.latest("created_at")), alice)


async def test_a_record_that_was_changed_differs_at_the_first_changed_token(model, alice):
    await cold(model)
    generation = await generate(model, question("Who are you?"))
    output = list(unpack_ids(generation.output_ids))
    true_id, output[3] = output[3], output[0]
    await database.write(UsageLog.objects.filter(pk=generation.pk).update, output_ids=pack_ids(tuple(output)))
    row = await replayed(generation, alice)
    assert not row.is_match and row.difference.at == 3 and row.difference.replayed.id == true_id
    assert row.notes == [
        "Nothing is known that explains it: same file, engine, CPU and settings. The record may have been changed."
    ]


async def test_a_prefix_from_the_cache_and_another_engine_are_named_as_reasons(model, alice):
    await generate(model, question("Who are you?"))
    generation = await generate(model, question("Who are you?"))
    changed = {"output_ids": pack_ids((1, 2)), "engine_build": "llama.cpp of old", "machine": "Z80"}
    await database.write(UsageLog.objects.filter(pk=generation.pk).update, **changed)
    reasons = " ".join((await replayed(generation, alice)).notes)
    assert "prompt tokens came from the cache" in reasons
    assert "llama.cpp of old then" in reasons and "Z80 then" in reasons


async def test_it_matches_while_others_are_answered(model, alice):
    await cold(model)
    generation = await generate(model, question("What is LocalLLM?"))
    others = [generate(model, question("Tell me more.", f"user {n}", max_tokens=300, seed=n)) for n in range(3)]
    row, *_ = await asyncio.gather(replayed(generation, alice), *others)
    assert row.is_match


async def test_a_row_that_shared_its_batches_says_so(model, alice):
    await asyncio.gather(*(generate(model, question("Tell me more.", f"user {n}", max_tokens=200)) for n in range(3)))
    assert all([await database.read(row.had_neighbours) for row in await database.read(list, UsageLog.objects.all())])


async def test_an_answer_that_outlived_its_engine_is_repeated_from_there_on(model, alice):
    async def kill():
        host = providers.local.loaded(model.local())
        await asyncio.sleep(0.02)
        host._give_up("the test says so.")

    wild = question("Count.", temperature=9.0, top_k=0, top_p=1.0, min_p=0.0, seed=1, max_tokens=400)
    generation = await generate(model, wild, then=kill)
    row = await replayed(generation, alice)
    assert row.is_match and (not generation.num_lost or f"after {generation.num_lost} tokens" in row.notes[0])


async def test_a_file_that_was_replaced_is_said(model, alice, path):
    generation = await generate(model, question("Who are you?"))
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(InferenceError, match=r"copy\.gguf is another one now than “copy”"):
        await replayed(generation, alice)
    path.unlink()
    with pytest.raises(InferenceError, match="is gone"):
        await replayed(generation, alice)
    shutil.copy(STARTER, path)


async def test_a_generation_without_output_cannot_be_replayed(model, alice):
    generation = await database.write(UsageLog.objects.create, provider="llama.cpp", model=model, finish_reason="error")
    with pytest.raises(InferenceError, match="there is nothing to compare"):
        await replayed(generation, alice)


async def test_who_asks_while_one_is_under_way_shares_it(model, alice):
    generation = await generate(model, question("Who are you?"))
    first = await database.write(Replay.objects.request, generation, alice)
    assert await database.write(Replay.objects.request, generation, alice) == first
    await database.write(first.job.cancel)
    assert await database.write(Replay.objects.request, generation, alice) != first


async def test_the_text_of_a_row_is_what_the_model_saw(model):
    prompt, output = await replays.texts(await generate(model, question("Who are you?")))
    assert "<|im_start|>user\nWho are you?<|im_end|>" in prompt and output.startswith("I'm")
