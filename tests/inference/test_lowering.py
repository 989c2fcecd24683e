"""Schemas on their way to a grammar: exact where it can be said, noted where not, refused with a reason."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.inference.engine.constraint import Grammar, Vocabulary
from localllm.inference.json_schema.compiler import SchemaCompiler
from localllm.inference.json_schema.document import Document
from localllm.inference.json_schema.errors import SchemaRefused
from localllm.inference.json_schema.grammar import compile_schema
from localllm.inference.json_schema.patterns import PatternError, example, search, translate
from localllm.inference.json_schema.validator import Validator

BYTES = Vocabulary([*(bytes([code]) for code in range(256)), b"<end>"], end_ids=[256], special_ids=[256])
NAMES: dict[str, Any] = {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": "boolean"}}
PAIR: dict[str, Any] = {"type": "object", "properties": NAMES}


def case(value: int, required: list[str]) -> dict[str, Any]:
    """Met where `a` is absent, too."""
    return {"if": {"properties": {"a": {"const": value}}}, "then": {"required": required}}


def grammar_of(schema: Any) -> tuple[Grammar, bool]:
    compiled = compile_schema(json.dumps(schema), extra_properties="schema")
    return Grammar(compiled.grammar, BYTES, compiled.examples), compiled.is_exact


def test_it_keeps_overlapping_one_of_exact() -> None:
    grammar, is_exact = grammar_of({"oneOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 5}]})
    assert is_exact
    assert [grammar.accepts(str(n)) for n in (2, 3, 5, 6)] == [True, False, False, True]


def test_it_closes_an_object_of_very_many_properties_or_refuses_it() -> None:
    schema = json.dumps({"properties": {f"p{n}": {} for n in range(501)}, "additionalProperties": True})
    grammar = Grammar(compile_schema(schema).grammar, BYTES)
    assert grammar.accepts('{"p500": 1}') and not grammar.accepts('{"p501": 1}')
    with pytest.raises(SchemaRefused, match="names 501 properties and may have others"):
        compile_schema(schema, extra_properties="schema")


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"not": {"const": "x"}, "type": "string"}, ['"y"', '""', '"xx"'], ['"x"']),
        ({"not": {"enum": [1, 2]}, "type": "integer"}, ["0", "3"], ["1", "2"]),
        ({**PAIR, "not": {"required": ["a"]}}, ['{"b": "x"}'], ['{"a": 1}']),
        (
            {**PAIR, "if": {"properties": {"a": {"const": 1}}, "required": ["a"]}, "then": {"required": ["b"]}},
            ['{"a": 2}', '{"a": 1, "b": ""}', "{}"],
            ['{"a": 1}'],
        ),
        (
            {**PAIR, "allOf": [case(1, ["b"]), case(2, ["c"]), {**case(3, []), "else": {"required": ["a"]}}]},
            ['{"a": 1, "b": ""}', '{"a": 2, "c": true}', '{"a": 3}', '{"b": "", "c": true}'],
            ['{"a": 1}', '{"a": 2, "b": ""}', "{}", '{"b": ""}'],
        ),
        ({**PAIR, "dependentRequired": {"a": ["c"]}}, ['{"b": ""}', '{"a": 1, "c": true}'], ['{"a": 1}']),
        ({**PAIR, "additionalProperties": False, "minProperties": 1}, ['{"c": true}'], ["{}"]),
        ({**PAIR, "additionalProperties": False, "maxProperties": 1}, ["{}", '{"a": 1}'], ['{"a": 1, "b": ""}']),
        ({**PAIR, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, ['{"a": 1}'], ["{}", '{"a": 1, "b": ""}']),
        ({"type": "object", "propertyNames": {"pattern": "^x"}}, ['{"xy": 1}'], ['{"y": 1}']),
        ({"type": "array", "uniqueItems": True, "items": {"enum": [1, 2]}}, ["[]", "[2, 1]"], ["[1, 1]"]),
        ({"type": "array", "maxItems": 2, "contains": {"const": 1}}, ["[0, 1]", "[1]"], ["[0]", "[]"]),
        ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2023-02-29"', '"x"']),
        ({"const": 1}, ["1"], ["true"]),
        ({"dependentSchemas": {"a": {"minimum": 3}}, "required": ["a"]}, ["1", '{"a": 1}'], ["{}"]),
    ],
)
def test_it_enforces_exactly_what_llguidance_alone_refuses(schema: Any, yes: list[str], no: list[str]) -> None:
    grammar, is_exact = grammar_of(schema)
    assert is_exact
    assert [text for text in yes if not grammar.accepts(text)] == []
    assert [text for text in no if grammar.accepts(text)] == []


def test_it_notes_what_is_only_checked_afterwards() -> None:
    compiled = compile_schema('{"type": "array", "items": {"type": "string"}, "uniqueItems": true}')
    assert [(note.path, note.keyword) for note in compiled.unenforced] == [("/uniqueItems", "uniqueItems")]


def test_it_ignores_unknown_formats_without_losing_exactness() -> None:
    compiled = compile_schema('{"type": "string", "format": "color"}')
    assert compiled.is_exact
    assert compiled.notes[0].action == "ignored"


def test_it_follows_a_cycle_of_references_that_can_end() -> None:
    grammar, _ = grammar_of({"properties": {"next": {"$ref": "#"}}, "type": "object", "additionalProperties": False})
    assert grammar.accepts('{"next": {"next": {}}}')


def test_it_merges_references_beside_other_keywords_in_a_cycle() -> None:
    node = {"type": "object", "properties": {"child": {"$ref": "#/$defs/node", "required": ["name"]}, "name": {}}}
    grammar, _ = grammar_of({"$ref": "#/$defs/node", "$defs": {"node": node}})
    assert grammar.accepts('{"child": {"child": {"name": 1}, "name": 2}}')
    assert not grammar.accepts('{"child": {"child": {}, "name": 2}}')


def test_it_reads_the_draft_that_the_schema_declares() -> None:
    grammar, _ = grammar_of(
        {
            "$schema": "http://json-schema.org/draft-04/schema#",
            "type": "integer",
            "minimum": 0,
            "exclusiveMinimum": True,
        }
    )
    assert grammar.accepts("1")
    assert not grammar.accepts("0")


def test_it_forbids_extra_properties_only_where_that_narrows() -> None:
    text = json.dumps({**PAIR, "allOf": [{"properties": {"d": {"type": "null"}}}]})
    grammar = Grammar(compile_schema(text, extra_properties="forbid").grammar, BYTES)
    assert grammar.accepts('{"a": 1, "d": null}')
    closed = Grammar(compile_schema(json.dumps(PAIR), extra_properties="forbid").grammar, BYTES)
    assert not closed.accepts('{"a": 1, "e": null}')


@pytest.mark.parametrize(
    ("text", "kind", "path"),
    [
        ("{", "unsupported", ""),
        ("[1]", "unsupported", ""),
        ('{"minimum": NaN}', "unsupported", ""),
        ('{"type": "strin"}', "unsupported", "/type"),
        ('{"items": ' * 1000 + "{}" + "}" * 1000, "unsupported", ""),
        (json.dumps({"description": "x" * 10_000_000}), "unsupported", ""),
        ('{"properties": {"a": {"$ref": "https://example.com/a.json"}}}', "unsupported", "/properties/a/$ref"),
        ('{"properties": {"a": {"pattern": "(?=b)a"}}}', "unsupported", "/properties/a/pattern"),
        ('{"anyOf": [{"type": "null"}, {"$ref": "#"}]}', "unsupported", ""),
        ("false", "unsatisfiable", ""),
        ('{"type": "integer", "minimum": 5, "maximum": 3}', "unsatisfiable", ""),
        ('{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}', "unsatisfiable", ""),
    ],
)
def test_it_refuses_with_kind_and_path(text: str, kind: str, path: str) -> None:
    with pytest.raises(SchemaRefused) as caught:
        compile_schema(text)
    assert (caught.value.kind, caught.value.path) == (kind, path)
    assert str(caught.value).endswith(".")


def test_it_finds_an_instance_of_every_schema_that_it_accepts() -> None:
    schema = {"type": "object", "properties": {"id": {"pattern": "order-[0-9]{4}"}, "n": {"minimum": 7}}}
    text = json.dumps({**schema, "required": ["id", "n"]})
    assert Validator(Document(text)).is_valid(json.loads(compile_schema(text).shortest))


def test_it_finds_no_example_of_a_pattern_that_matches_nothing() -> None:
    assert example(translate("[]")) is None


@given(st.from_regex(r"[a-c\[\](){}|.^$*+?\\dwsWDS0-9,-]{1,12}", fullmatch=True), st.text("abc019 _-é", max_size=6))
@settings(max_examples=100, deadline=None)
def test_it_translates_patterns_to_what_runs_in_linear_time(pattern: str, text: str) -> None:
    try:
        translated = translate(pattern)
    except PatternError:
        return
    assert isinstance(search(pattern, text), bool)
    found = example(translated)
    assert found is None or search(pattern, found)


def test_it_compiles_in_a_child_that_outlives_a_hostile_schema() -> None:
    async def both() -> str:
        compiler = SchemaCompiler(timeout_s=0.001)
        try:
            with pytest.raises(SchemaRefused, match="to compile"):
                await compiler.compile(json.dumps({"properties": {f"p{n}": {} for n in range(1500)}}))
            compiler._timeout_s = 20
            return (await compiler.compile('{"type": "null"}')).shortest
        finally:
            await compiler.close()

    assert asyncio.run(both()) == "null"
