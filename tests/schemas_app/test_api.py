"""/api/local-llm as a program finds it on a real server: data that satisfies its schema, or an error that says why."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from localllm.inference.json_schema.document import Document
from localllm.inference.json_schema.validator import Validator
from tests.gateway.test_api import post, until, usage_rows
from tests.server import Server

STRUCTURED, EXTRACT = "/api/local-llm/structured", "/api/local-llm/extract-parameters"
TEXT = "Maya Lindgren, 36, lives in Uppsala."
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 30}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
# Which items are equal is known only when all are there.
RELAXED: dict[str, Any] = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 9}
HOPELESS: dict[str, Any] = RELAXED | {"items": {"enum": [*range(9)]}, "minItems": 9}
LONG: dict[str, Any] = {"type": "array", "items": {"type": "string", "minLength": 9}, "minItems": 50}
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"type": "integer", "maximum": 9}},
        "required": ["city", "days"],
    },
}
MAKE = """
from django.contrib.auth.models import User
from schemas_app.models import Schema
import json
for slug, owner in (("person", "ada"), ("secret", "eve")):
    schema = Schema.objects.create(slug=slug, name=slug, owner=User.objects.get_or_create(username=owner)[0])
    schema.add_version(text=json.dumps({"type": "object"}), max_tokens=100)
    schema.add_version(text=json.dumps(%r), max_tokens=100, prompt_template="Who is it?\\n{{ input }}")
"""


@pytest.fixture(scope="module", autouse=True)
def stored(server: Server) -> None:
    done = server.manage("shell", "-v0", "-c", MAKE % PERSON)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def key(server: Server) -> str:
    return server.make_key("native", user="ada")


def ask(server: Server, key: str, path: str = STRUCTURED, **body: Any) -> tuple[int, dict[str, Any]]:
    question = {"message": TEXT} if path == EXTRACT else {} if "messages" in body else {"input": TEXT}
    return post(server, key, json.dumps({**question, "max_tokens": 100, **body}).encode(), path)


def stream(server: Server, key: str, **body: Any) -> Iterator[str]:
    """The data of each event."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        asked = json.dumps({"input": TEXT, "max_tokens": 100, "stream": True, **body})
        connection.request("POST", STRUCTURED, asked, {"Authorization": f"Bearer {key}"})
        for line in connection.getresponse():
            if line.startswith(b"data: "):
                yield line.removeprefix(b"data: ").decode().strip()


def is_valid(schema: Any, data: Any) -> bool:
    return Validator(Document(json.dumps(schema))).is_valid(data)


def test_a_result_says_how_it_was_guaranteed(server: Server, key: str) -> None:
    status, result = ask(server, key, schema=PERSON)
    assert status == 200 and is_valid(PERSON, result["data"])
    assert set(result) == {
        "data", "guarantee", "unenforced", "attempts", "fields", "usage", "finish_reason", "provider", "model",
    }  # fmt: skip
    assert (result["guarantee"], result["unenforced"], result["attempts"]) == ("constrained", [], 1)
    assert (result["provider"], result["model"]) == ("llama.cpp", "starter")


def test_each_field_says_how_probable_it_is_and_where_the_input_says_it(server: Server, key: str) -> None:
    _, result = ask(
        server, key, schema={"type": "object", "properties": {"city": {"const": "Uppsala"}}, "required": ["city"]}
    )
    assert result["fields"]["/city"]["source"] == [TEXT.index("Uppsala"), TEXT.index("Uppsala") + 7]
    assert 0 <= result["fields"]["/city"]["probability"] <= 1


def test_a_stored_schema_is_asked_by_its_newest_version_and_logged_with_it(server: Server, key: str) -> None:
    before = usage_rows(server, "source = 'api' AND schema_version_id IS NOT NULL")
    status, result = post(server, key, json.dumps({"schema": "person", "input": TEXT}).encode(), STRUCTURED)
    assert status == 200 and is_valid(PERSON, result["data"])
    assert until(lambda: usage_rows(server, "source = 'api' AND schema_version_id IS NOT NULL") == before + 1)
    source = result["fields"]["/name"]["source"]
    assert source is None or source[1] <= len(TEXT)  # in the input, not in the prompt around it


@pytest.mark.parametrize("slug", ["secret", "nothing"])
def test_a_schema_of_somebody_else_is_as_unknown_as_one_that_is_not_there(server: Server, key: str, slug: str) -> None:
    status, answer = ask(server, key, schema=slug)
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "schema_not_found", "schema")


def test_it_takes_a_conversation(server: Server, key: str) -> None:
    turns = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": TEXT}]
    status, result = ask(server, key, schema=PERSON, messages=turns, temperature=0, seed=7, compact=True)
    assert status == 200 and is_valid(PERSON, result["data"])


def test_what_is_enforced_streams_as_it_is_written(server: Server, key: str) -> None:
    *deltas, result, end = stream(server, key, schema=PERSON)
    text = "".join(json.loads(each)["delta"] for each in deltas)
    assert len(deltas) > 2 and json.loads(text) == json.loads(result)["data"] and end == "[DONE]"


def test_what_is_checked_afterwards_comes_only_as_the_result(server: Server, key: str) -> None:
    result, end = stream(server, key, schema=RELAXED, temperature=1.5)
    assert is_valid(RELAXED, json.loads(result)["data"]) and end == "[DONE]"
    assert [each["keyword"] for each in json.loads(result)["unenforced"]] == ["uniqueItems"]


def test_a_client_that_goes_away_cancels(server: Server, key: str) -> None:
    before = usage_rows(server, "finish_reason = 'cancelled'")
    events = stream(server, key, schema=LONG, max_tokens=900)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert until(lambda: usage_rows(server, "finish_reason = 'cancelled'") == before + 1)


# What cannot be


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"schema": PERSON, "max_tokens": 4}, 400, "truncated"),
        ({"schema": False}, 400, "unsatisfiable"),
        ({"schema": {"type": "objekt"}}, 400, "unsupported"),
        ({"schema": HOPELESS}, 422, "invalid_after_retries"),
        ({"schema": PERSON, "model": "gpt"}, 404, "model_not_found"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_is_of_a_kind_that_the_caller_can_act_on(
    server: Server, key: str, body: dict[str, Any], status: int, code: str
) -> None:
    got, answer = ask(server, key, **body)
    assert (got, answer["error"]["code"]) == (status, code) and answer["error"]["message"].endswith(".")


def test_a_schema_that_cannot_be_used_is_refused_by_path_and_keyword(server: Server, key: str) -> None:
    _, answer = ask(server, key, schema={"properties": {"a": {"$ref": "https://example.com/schema.json"}}})
    assert answer["error"]["localllm"] == {"path": "/properties/a/$ref", "keyword": "$ref"}


def test_without_a_valid_answer_it_gives_the_best_and_what_is_wrong_with_it(server: Server, key: str) -> None:
    _, answer = ask(server, key, schema=HOPELESS)
    about = answer["error"]["localllm"]
    assert isinstance(about["candidate"], list) and "too short" in about["violations"][0]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"schema": PERSON, "top_k": 3}, "top_k"),
        ({"schema": 5}, "schema"),
        ({"schema": PERSON, "messages": [], "input": None}, "messages"),
        ({"schema": PERSON, "messages": [{"role": "user", "content": "a"}], "input": "b"}, "input"),
        ({"schema": PERSON, "messages": [{"role": "assistant", "content": "a"}]}, "messages"),
        ({"schema": PERSON, "input": "\ud800"}, "input"),
    ],
    ids=str,
)
def test_what_it_does_not_know_is_refused_by_name(server: Server, key: str, body: dict[str, Any], param: str) -> None:
    status, answer = ask(server, key, **body)
    assert (status, answer["error"]["param"]) == (400, param)


def test_a_key_is_needed(server: Server) -> None:
    assert ask(server, "sk-wrong", schema=PERSON)[0] == ask(server, "sk-wrong", EXTRACT, function=WEATHER)[0] == 401


# Parameters of a function


@pytest.mark.parametrize("function", [WEATHER, {"type": "function", "function": WEATHER}], ids=["bare", "tool"])
def test_parameters_are_taken_from_a_message_and_nothing_is_invented(
    server: Server, key: str, function: dict[str, Any]
) -> None:
    status, answer = ask(server, key, EXTRACT, function=function)
    assert (status, answer["name"]) == (200, "get_weather")
    assert {*answer["parameters"], *answer["missing"]} == {"city", "days"}
    assert answer["guarantee"] == "constrained" and "data" not in answer


def test_what_is_no_function_is_refused(server: Server, key: str) -> None:
    status, answer = ask(server, key, EXTRACT, function={"name": "two words"})
    assert (status, answer["error"]["param"]) == (400, "function")
