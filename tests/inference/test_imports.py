"""Schemas from examples and from what other programs print."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.inference.json_schema.document import Document
from localllm.inference.json_schema.imports import ImportProblem, from_example, from_json_schema, infer
from localllm.inference.json_schema.validator import Validator

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(st.lists(JSON, min_size=1, max_size=3))
def test_every_example_satisfies_the_schema_it_suggests(examples: list[object]) -> None:
    validator = Validator(Document(json.dumps({"allOf": [infer(examples)]})))
    assert all(validator.is_valid(example) for example in examples)


def test_it_reads_types_and_formats_off_an_example() -> None:
    schema = from_example('{"n": 1, "on": "2026-01-31", "mail": "a@b.org", "note": "a:b"}').schema
    assert schema["properties"] == {
        "n": {"type": "integer"},
        "on": {"type": "string", "format": "date"},
        "mail": {"type": "string", "format": "email"},
        "note": {"type": "string"},
    }


def test_what_not_every_example_has_is_not_required() -> None:
    schema = from_example('{"a": 1, "b": 2}\n{"a": 2.5}').schema
    assert schema["required"] == ["a"]
    assert schema["properties"]["a"] == {"type": "number"}


def test_items_that_differ_become_alternatives() -> None:
    assert from_example('["a", null]').schema["items"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}


@pytest.mark.parametrize(
    "wrapped",
    [
        {"type": "object", "properties": {}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {}}}},
        {"type": "function", "function": {"name": "x", "parameters": {"type": "object", "properties": {}}}},
        {"name": "x", "parameters": {"type": "object", "properties": {}}},
    ],
)
def test_it_unwraps_a_schema(wrapped: object) -> None:
    assert from_json_schema(json.dumps(wrapped)).schema == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not JSON"),
        ("{'a': 1}", "not JSON"),
        ("NaN", "NaN is no JSON number"),
        ('{"a": "\\ud800"}', "surrogate"),
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 100 + "1" + "}" * 100, "more than 60 levels"),
        ("[" + "1," * 200_000 + "1]", "at most 262,144"),
    ],
)
def test_it_says_why_an_example_cannot_be_taken_over(text: str, why: str) -> None:
    with pytest.raises(ImportProblem, match=why):
        from_example(text)


def test_a_list_is_no_schema() -> None:
    with pytest.raises(ImportProblem, match="no schema"):
        from_json_schema("[]")
