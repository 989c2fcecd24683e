"""Answers by a schema from the real engine on the starter model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from localllm.inference.engine.host import EngineHost
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import ConstraintError, ContextOverflow, EngineDied
from localllm.inference.json_schema.document import Document
from localllm.inference.json_schema.grammar import compile_schema
from localllm.inference.json_schema.validator import Validator
from localllm.inference.types import ChatRequest, Chunk, Finished, Message, ResponseFormat, SamplingParams
from tests.inference.engine_on_starter import STARTER, SYSTEM, StarterEngine, prompt

WILD: dict[str, Any] = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "minLength": 2, "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "lost"]}, "maxItems": 4},
    },
    "required": ["first_name", "age", "email", "tags"],
}
SCHEMAS: list[Any] = [
    PERSON,
    {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0}, "minItems": 2},
    {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}]},
    {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {
        "name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}
    }, "required": ["name"]}}},
    {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
    {"const": {"always": ["the", "same"]}},
    {"type": "object"},
]  # fmt: skip
LONG: dict[str, Any] = {
    "type": "array", "minItems": 40, "maxItems": 200,
    "items": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def starter() -> StarterEngine:
    return StarterEngine()


def is_valid(schema: Any, text: str) -> bool:
    return Validator(Document(json.dumps(schema))).is_valid(json.loads(text))


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: next(iter(schema)))
def test_it_writes_nothing_but_documents_of_the_schema(starter: StarterEngine, schema: Any) -> None:
    readers = [starter.ask_json(schema, seed=seed, max_tokens=120, **WILD) for seed in range(4)]
    starter.run()
    assert [is_valid(schema, reader.text) for reader in readers] == [True] * 4
    assert {reader.finished.reason for reader in readers} <= {"stop", "closed"}


@pytest.mark.parametrize("seed", range(4))
def test_it_closes_the_document_when_the_budget_ends(starter: StarterEngine, seed: int) -> None:
    max_tokens = starter.constraint(LONG, 1000)._grammar.min_tokens + 8
    reader = starter.ask_json(LONG, seed=seed, max_tokens=max_tokens, **WILD)
    starter.run()
    assert reader.finished.reason == "closed" and is_valid(LONG, reader.text)
    assert reader.finished.usage.completion_tokens == len(reader.token_ids) <= max_tokens


def test_it_computes_forced_tokens_in_one_batch(starter: StarterEngine) -> None:
    schema = {"type": "object", "properties": {"a_long_name_of_a_property": {"type": "boolean"}}}
    schema |= {"required": ["a_long_name_of_a_property"]}
    before = starter.engine.num_steps
    reader = starter.ask_json(schema, temperature=0.0)
    starter.run()
    assert is_valid(schema, reader.text)
    assert starter.engine.num_steps - before < len(reader.token_ids) / 2


def test_it_computes_nothing_for_an_answer_that_is_forced_whole(starter: StarterEngine) -> None:
    before = starter.engine.num_steps
    reader = starter.ask_json({"const": "the only answer"})
    starter.run()
    assert json.loads(reader.text) == "the only answer"
    assert reader.finished.reason == "stop" and starter.engine.num_steps - before <= 1


def test_its_logprobs_follow_the_text_with_forced_tokens_as_certain(starter: StarterEngine) -> None:
    reader = starter.ask_json(PERSON, num_logprobs=0, max_tokens=120)
    starter.run()
    assert b"".join(each.token for each in reader.logprobs).decode() == reader.text
    assert 0.0 in {each.logprob for each in reader.logprobs} and min(each.logprob for each in reader.logprobs) < 0


def test_a_free_answer_is_the_same_beside_a_constrained_one() -> None:
    alone, beside = StarterEngine(), StarterEngine()
    expected = alone.ask(prompt("What is a token?"))
    alone.run()
    reader = beside.ask(prompt("What is a token?"))
    beside.ask_json(PERSON, owner="bob", **WILD)
    beside.run()
    assert reader.text == expected.text and reader.finished.reason == expected.finished.reason


def test_a_constraint_that_fails_fails_its_own_request_only(starter: StarterEngine) -> None:
    broken = starter.ask_json(PERSON)
    starter.last.constraint.candidates = _too_costly  # type: ignore[union-attr, method-assign]
    bystander = starter.ask(prompt("Who are you?"), owner="bob")
    starter.run()
    assert isinstance(broken.events[-1], ConstraintError)
    assert bystander.text.startswith("I'm LocalLLM's small starter model")


def _too_costly(logits: Any) -> Any:
    raise ConstraintError("The schema became too costly to follow.")


# Through the worker process


@pytest.fixture
async def host() -> AsyncIterator[EngineHost]:
    host = EngineHost(STARTER, EngineSettings())
    host.start()
    await host.wait_until_ready()
    yield host
    await host.stop()


def ask(schema: Any, *, prefix: str = "", **params: Any) -> ChatRequest:
    compiled = compile_schema(json.dumps(schema))
    return ChatRequest(
        messages=(Message("system", SYSTEM), Message("user", "Who are you?")),
        params=SamplingParams(**{"max_tokens": 400, "seed": 3} | params),
        prefix=prefix,
        response_format=ResponseFormat(
            schema=compiled.text, digest=compiled.digest, grammar=compiled.grammar, examples=compiled.examples
        ),
    )


async def read(host: EngineHost, request: ChatRequest) -> tuple[str, Finished]:
    text, last = "", None
    async with aclosing(host.stream(request)) as events:
        async for event in events:
            text += event.text if isinstance(event, Chunk) else ""
            last = event
    assert isinstance(last, Finished)
    return text, last


async def test_max_tokens_below_the_shortest_document_is_refused_up_front(host: EngineHost) -> None:
    with pytest.raises(ConstraintError, match=r"max_tokens is 5, but the shortest answer .* at least \d\d") as caught:
        await read(host, ask(PERSON, max_tokens=5))
    assert caught.value.kind == "truncated" and caught.value.permanent


async def test_max_tokens_may_yield_to_the_window(host: EngineHost) -> None:
    request = ask(PERSON, max_tokens=1_000_000)
    with pytest.raises(ContextOverflow):
        await read(host, request)
    clipped = msgspec.structs.replace(request.params, clips_max_tokens=True)
    text, _ = await read(host, msgspec.structs.replace(request, params=clipped))
    assert is_valid(PERSON, text)


async def test_it_goes_on_from_any_point_of_a_document(host: EngineHost) -> None:
    whole, _ = await read(host, ask(PERSON, **WILD))
    for end in range(0, len(whole) + 1, 7):
        rest, finished = await read(host, ask(PERSON, prefix=whole[:end], **WILD))
        assert is_valid(PERSON, whole[:end] + rest) and finished.reason in ("stop", "closed")


async def test_a_document_that_cannot_end_in_what_is_left_fails_alone(host: EngineHost) -> None:
    pid = host.pid
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "required": ["b"]}
    with pytest.raises(ConstraintError, match="cannot be ended within its budget"):
        await read(host, ask(schema, prefix='{"a": "' + "and so on " * 20, max_tokens=1))
    assert host.pid == pid and (await read(host, ask({"const": [1, 2]})))[0]


async def test_a_whole_document_as_prefix_needs_nothing_more(host: EngineHost) -> None:
    text, finished = await read(host, ask({"const": [1, 2]}, prefix="[1,2]"))
    assert is_valid({"const": [1, 2]}, f"[1,2]{text}") and finished.reason == "stop"


async def test_a_document_survives_the_end_of_its_worker(host: EngineHost) -> None:
    text, pid = "", host.pid
    assert pid is not None
    with pytest.raises(EngineDied):
        async with aclosing(host.stream(ask(LONG, max_tokens=900, **WILD))) as events:
            async for event in events:
                text += event.text if isinstance(event, Chunk) else ""
                if len(text) > 60 and host.pid == pid:
                    os.kill(pid, signal.SIGKILL)
                    await asyncio.sleep(0.1)
    rest, finished = await read(host, ask(LONG, prefix=text, max_tokens=600, **WILD))
    assert text and is_valid(LONG, text + rest) and finished.reason in ("stop", "closed")
