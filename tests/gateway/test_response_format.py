"""`response_format` as OpenAI's own client finds it: data that satisfies the schema, or an error that says why not."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from localllm.inference.json_schema.document import Document
from localllm.inference.json_schema.validator import Validator
from tests.gateway.test_api import post, until, usage_rows
from tests.server import Server

HELLO: list[Any] = [{"role": "user", "content": "Who are you?"}]
WILD: dict[str, Any] = {"temperature": 1.5, "extra_body": {"top_k": 0, "min_p": 0}, "top_p": 1}
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 30}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
# Which items are equal is known only when all are there.
RELAXED: dict[str, Any] = {
    "type": "object",
    "properties": {"tags": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 50}},
    "required": ["tags"],
}


def by(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


def ask(api: OpenAI, schema: Any, *, strict: bool = False, **parameters: Any) -> Any:
    asked = {"model": "default", "messages": HELLO, "max_tokens": 200, "response_format": by(schema, strict=strict)}
    return api.chat.completions.create(**asked | parameters)


def is_valid(schema: Any, text: str | None) -> bool:
    return Validator(Document(json.dumps(schema))).is_valid(json.loads(text or ""))


@pytest.mark.parametrize("strict", [True, False])
def test_it_answers_by_the_schema_and_says_how_that_was_made_sure(api: OpenAI, strict: bool) -> None:
    answer = ask(api, PERSON, strict=strict, **WILD)
    assert is_valid(PERSON, answer.choices[0].message.content) and answer.choices[0].finish_reason == "stop"
    about = answer.model_extra["localllm"]
    assert (about["guarantee"], about["unenforced"], about["attempts"]) == ("constrained", [], 1)


def test_json_object_is_any_object(api: OpenAI) -> None:
    for seed in range(3):
        answer = ask(api, None, response_format={"type": "json_object"}, seed=seed, max_tokens=60, **WILD)
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


class Step(BaseModel):
    explanation: str
    is_last: bool


class Plan(BaseModel):
    kind: Literal["short", "long"]
    steps: list[Step]
    note: str | None


def test_it_is_parsed_into_a_pydantic_model(api: OpenAI) -> None:
    for seed in range(3):
        answer = api.chat.completions.parse(
            model="default", messages=HELLO, response_format=Plan, max_tokens=120, seed=seed, **WILD
        )
        assert isinstance(answer.choices[0].message.parsed, Plan)


def test_a_stream_is_parsed_into_a_pydantic_model(api: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "default", "messages": HELLO, "max_tokens": 120, **WILD}
    with api.chat.completions.stream(response_format=Plan, **asked) as stream:
        deltas = [event for event in stream if event.type == "content.delta"]
        parsed = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(parsed, Plan) and len(deltas) > 2


def test_it_closes_the_document_at_max_tokens_and_says_so(api: OpenAI) -> None:
    schema = {"type": "array", "items": {"type": "integer", "minimum": 100}, "minItems": 20}
    answers = [ask(api, schema, max_tokens=120, seed=seed, **WILD) for seed in range(4)]
    for answer in answers:
        assert is_valid(schema, answer.choices[0].message.content)
        assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens <= 120
    assert any(answer.model_extra["localllm"].get("closed") for answer in answers)


def test_a_fully_enforced_schema_streams_as_it_is_written(api: OpenAI) -> None:
    chunks = list(ask(api, PERSON, stream=True, **WILD))
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert is_valid(PERSON, "".join(texts)) and len(texts) > 2
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].model_extra["localllm"]["guarantee"] == "constrained"


def test_what_is_checked_afterwards_is_held_back_until_it_is_valid(api: OpenAI) -> None:
    chunks = list(ask(api, RELAXED, stream=True, **WILD))
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert len(texts) == 1 and is_valid(RELAXED, texts[0])
    about = chunks[-1].model_extra["localllm"]
    assert about["guarantee"] in ("validated", "repaired") and about["unenforced"]


def test_every_attempt_is_in_the_usage_log(server: Server, api: OpenAI) -> None:
    where = "source = 'api' AND finish_reason IN ('stop', 'closed') AND completion_tokens > 0"
    before = usage_rows(server, where)
    attempts = ask(api, PERSON).model_extra["localllm"]["attempts"]
    assert until(lambda: usage_rows(server, where) == before + attempts)


# What cannot be


def test_max_tokens_below_the_shortest_answer_is_refused_with_the_number(api: OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="at least") as caught:
            ask(api, PERSON, max_tokens=4, stream=stream)
        assert caught.value.code == "truncated" and caught.value.param == "max_tokens"


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"enum": ["a"], "type": "integer"},
    ],
    ids=str,
)
def test_a_schema_that_nothing_satisfies_is_refused(api: OpenAI, schema: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(api, schema)
    assert caught.value.code == "unsatisfiable"


@pytest.mark.parametrize(
    ("schema", "path", "keyword"),
    [
        ({"type": "objekt"}, "/type", "type"),
        ({"properties": {"a": {"$ref": "https://example.com/schema.json"}}}, "/properties/a", "$ref"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_by_path_and_keyword(
    server: Server, key: str, schema: Any, path: str, keyword: str
) -> None:
    status, answer = post(server, key, json.dumps({"messages": HELLO, "response_format": by(schema)}).encode())
    error = answer["error"]
    assert (status, error["code"], error["param"]) == (400, "unsupported", "response_format.json_schema.schema")
    assert error["localllm"]["path"].startswith(path.rpartition("/")[0]) and error["localllm"]["keyword"] == keyword


def test_strict_refuses_what_is_only_checked_afterwards(api: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
        ask(api, RELAXED, strict=True)
    assert caught.value.code == "unsupported"
    assert caught.value.body["localllm"]["path"].startswith("/properties/tags")  # type: ignore[index]


@pytest.mark.parametrize("depth", [200, 900])
def test_it_survives_a_schema_that_nests_deep(server: Server, key: str, depth: int) -> None:
    schema = '{"items":' * depth + "{}" + "}" * depth
    head = f'{{"messages": {json.dumps(HELLO)}, "response_format": {{"type": "json_schema", "json_schema": '
    status, answer = post(server, key, f'{head}{{"name": "deep", "schema": {schema}}}}}}}'.encode())
    assert status == 400 and answer["error"]["message"].endswith(".")


def test_half_a_surrogate_pair_in_a_schema_is_refused(server: Server, key: str) -> None:
    status, answer = post(
        server, key, json.dumps({"messages": HELLO, "response_format": by({"enum": ["\ud800"]})}).encode()
    )
    assert status == 400 and "surrogate" in answer["error"]["message"]


def test_an_answer_survives_the_end_of_the_engine(server: Server, api: OpenAI) -> None:
    schema = {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}, "minItems": 30}
    texts: list[str] = []
    for chunk in ask(api, schema, stream=True, max_tokens=600, **WILD):
        texts.append(chunk.choices[0].delta.content or "")
        if len(texts) == 8:
            os.kill(server.worker_pids[0], signal.SIGKILL)
    assert is_valid(schema, "".join(texts))


def test_the_schema_and_what_is_said_of_it_reach_the_model(server: Server, api: OpenAI) -> None:
    plain = ask(api, PERSON).usage.prompt_tokens
    about = {"name": "person", "description": "A person who is named in the text."}
    told = ask(api, PERSON, response_format=by(PERSON) | {"json_schema": {"schema": PERSON, **about}})
    assert told.usage.prompt_tokens > plain + 8


# Which items there are is known only at the end, and the starter never writes this one.
UNLIKELY: dict[str, Any] = {"type": "array", "items": {"type": "integer"}, "contains": {"const": 918273645}}


@pytest.mark.parametrize("stream", [False, True])
def test_three_failed_attempts_are_an_error_with_the_best_candidate(api: OpenAI, stream: bool) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        ask(api, UNLIKELY | {"maxItems": 20}, stream=stream, max_tokens=60)
    error: Any = caught.value.body
    assert error["code"] == "invalid_after_retries" and isinstance(error["localllm"]["candidate"], list)
    assert "contain" in error["localllm"]["violations"][0]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("schema", [PERSON, RELAXED], ids=["enforced", "checked"])
def test_logprobs_are_those_of_the_text_or_left_out(api: OpenAI, schema: Any, stream: bool) -> None:
    for seed in range(3):
        answer = ask(api, schema, logprobs=True, seed=seed, stream=stream, **WILD)
        choices = [choice for part in (answer if stream else [answer]) for choice in part.choices]
        logprobs = [each for choice in choices if choice.logprobs for each in choice.logprobs.content]
        texts = [(choice.delta if stream else choice.message).content or "" for choice in choices]
        assert bytes(b for each in logprobs for b in each.bytes).decode() in ("".join(texts), "")


def test_an_answer_is_given_as_it_was_written(api: OpenAI) -> None:
    answer = ask(api, PERSON, logprobs=True, **WILD)
    tokens = answer.choices[0].logprobs.content
    assert bytes(b for each in tokens for b in each.bytes).decode() == answer.choices[0].message.content


def test_the_usage_log_names_the_schema(server: Server, api: OpenAI) -> None:
    ask(api, {"const": "the usage log names this schema"})
    digest = hashlib.sha256(b'{"const": "the usage log names this schema"}').hexdigest()
    assert until(lambda: usage_rows(server, f"parameters LIKE '%{digest}%'") == 1)
