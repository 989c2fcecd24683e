"""Rows of the field builder and the schema that says the same."""

from __future__ import annotations

import pytest

from localllm.inference.json_schema.fields import (
    KINDS,
    WITH_CHOICES,
    WITH_FIELDS,
    Field,
    FieldProblem,
    from_schema,
    to_schema,
)

INVOICE = [
    Field("number", description="As printed"),
    Field("total", "number", least="0.5"),
    Field("lines", "groups", least="1", most="9"),
    Field("lines.name", is_required=False),
    Field("lines.kind", "choice", choices="goods, work"),
    Field("seller", "group"),
    Field("seller.email", "email"),
]


def test_it_writes_nested_fields_by_their_dots() -> None:
    schema = to_schema(INVOICE)
    assert schema["properties"]["lines"]["items"]["properties"]["kind"] == {"type": "string", "enum": ["goods", "work"]}
    assert schema["properties"]["lines"]["items"]["required"] == ["kind"]
    assert schema["properties"]["seller"]["properties"] == {"email": {"type": "string", "format": "email"}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_each_kind_comes_back_from_its_schema(kind: str) -> None:
    rows = [Field("it", kind, choices="a, b" if kind in WITH_CHOICES else "")]
    rows += [Field("it.inner", "yes_no")] if kind in WITH_FIELDS else []
    schema = to_schema(rows)
    back = from_schema(schema)
    assert back is not None and to_schema(back) == schema
    assert [field.kind for field in back] == [field.kind for field in rows]


def test_limits_and_choices_come_back_too() -> None:
    back = from_schema(to_schema(INVOICE))
    assert back is not None
    assert [(field.name, field.least, field.most, field.choices) for field in back[1:5]] == [
        ("total", "0.5", "", ""),
        ("lines", "1", "9", ""),
        ("lines.name", "", "200", ""),
        ("lines.kind", "", "", "goods, work"),
    ]


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"type": "string"},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}, "required": []},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": [], "additionalProperties": False},
        to_schema(INVOICE) | {"title": "Invoice"},
        {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1e300}}, "required": []},
    ],
)
def test_what_rows_cannot_say_has_no_rows(schema: object) -> None:
    assert from_schema(schema) is None


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "There are no fields yet"),
        ([Field("", description="x")], "has no name"),
        ([Field("a"), Field("a")], "two fields “a”"),
        ([Field("a.b")], "needs a row “a” above it"),
        ([Field("a"), Field("a.b")], "needs a row “a” above it"),
        ([Field("a", "group")], "The group “a” has no fields"),
        ([Field("a", "choice")], "without choices"),
        ([Field("a", "choice", choices="x, x")], "a choice twice"),
        ([Field("a", "integer", least="2", most="1")], "above its most"),
        ([Field("a", "integer", least="1.5")], "a whole number"),
        ([Field("a", "texts", least="-1")], "a count"),
        ([Field("a", "number", most="1e5")], "a number such as 2.5"),
        ([Field("a", "colour")], "does not exist"),
        ([Field(f"f{number}") for number in range(121)], "at most 120"),
    ],
)
def test_it_names_the_row_that_says_nothing(rows: list[Field], why: str) -> None:
    with pytest.raises(FieldProblem, match=why):
        to_schema(rows)
