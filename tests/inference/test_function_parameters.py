"""Parameters of a function: what was not said is missing, never invented."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from localllm.inference.function_parameters import nullable_parameters, split_missing
from localllm.inference.json_schema.document import Document
from localllm.inference.json_schema.errors import SchemaRefused
from localllm.inference.json_schema.grammar import compile_schema
from localllm.inference.json_schema.validator import Validator
from localllm.inference.structured import StructuredError, StructuredResult, instruct, structured
from localllm.inference.types import ChatRequest, Message
from tests.inference.test_structured import Scripted

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather at a place",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 1},
            "unit": {"enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 1},
            "note": {"type": ["string", "null"]},
            "at": {"$ref": "#/$defs/point"},
        },
        "required": ["city", "unit", "note"],
        "$defs": {
            "point": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
        },
    },
}
FUNCTION = nullable_parameters(WEATHER)


def test_it_reads_the_form_of_openai_tools_too() -> None:
    assert nullable_parameters({"type": "function", "function": WEATHER}) == FUNCTION
    assert (FUNCTION.name, FUNCTION.description) == ("get_weather", "The weather at a place")


def test_every_parameter_may_be_null_and_nothing_else_changes() -> None:
    compiled = compile_schema(FUNCTION.schema_text)
    validator = Validator(Document(FUNCTION.schema_text))
    assert compiled.is_exact
    assert validator.is_valid({"city": None, "unit": None, "note": None, "days": None, "at": {"lat": None}})
    assert not validator.is_valid({"city": "", "unit": "celsius", "note": None})
    assert not validator.is_valid({"city": "Rome", "unit": "kelvin", "note": None})


def test_what_was_not_said_is_missing_if_it_is_required() -> None:
    data = {"city": "Rome", "unit": None, "days": None, "note": None, "at": {"lat": None}}
    assert split_missing(data, FUNCTION) == ({"city": "Rome", "note": None, "at": {}}, ("unit", "at.lat"))


def test_nothing_is_missing_where_all_was_said() -> None:
    data = {"city": "Rome", "unit": "celsius", "note": "urgent"}
    assert split_missing(data, FUNCTION) == (data, ())


def test_what_is_left_must_satisfy_the_function_itself() -> None:
    some = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "minProperties": 1}
    with pytest.raises(StructuredError, match="pick fail because"):
        split_missing({"a": None}, nullable_parameters({"name": "pick", "parameters": some}))


def test_a_function_without_parameters_has_none() -> None:
    assert split_missing({}, nullable_parameters({"name": "ping"})) == ({}, ())


@pytest.mark.parametrize("function", [None, {}, {"name": "two words"}, {"name": "f", "parameters": [1]}], ids=str)
def test_it_refuses_what_is_no_function(function: Any) -> None:
    with pytest.raises(SchemaRefused, match="a function is"):
        nullable_parameters(function)


def test_the_model_is_told_what_null_means() -> None:
    provider = Scripted('{"city": "Rome", "unit": null, "note": null}')
    messages = instruct((Message("user", "How is it in Rome?"),), FUNCTION.schema_text, FUNCTION.about)

    async def ask() -> StructuredResult:
        schema = compile_schema(FUNCTION.schema_text)
        async with aclosing(structured(provider, ChatRequest(messages=messages), schema, is_constrained=True)) as items:
            return [item async for item in items][-1]  # type: ignore[return-value]

    assert split_missing(asyncio.run(ask()).data, FUNCTION) == ({"city": "Rome", "note": None}, ("unit",))
    told = provider.requests[0].messages[0].content
    assert "get_weather (The weather at a place)" in told and "null means “not said”" in told
