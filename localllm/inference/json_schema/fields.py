"""The common shapes of data as rows of a table, and the JSON Schema that says the same.

A row's name may have dots: `items.price` is a field of each entry of the list `items`. What rows cannot say is
left to the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Json = Any

LINE = 200  # characters of a text that is one line; longer ones are long texts
MAX_ROWS = 120  # seven inputs each, of the thousand that a form may have
# Kind: what people call it, and what it is before limits and choices.
KINDS: dict[str, tuple[str, Json]] = {
    "text": ("Text", {"type": "string"}),
    "long_text": ("Long text", {"type": "string"}),
    "integer": ("Whole number", {"type": "integer"}),
    "number": ("Number", {"type": "number"}),
    "yes_no": ("Yes or no", {"type": "boolean"}),
    "date": ("Date", {"type": "string", "format": "date"}),
    "date_time": ("Date and time", {"type": "string", "format": "date-time"}),
    "email": ("E-mail address", {"type": "string", "format": "email"}),
    "uri": ("Web address", {"type": "string", "format": "uri"}),
    "choice": ("Choice", {"type": "string"}),
    "texts": ("List of texts", {"type": "array", "items": {"type": "string"}}),
    "numbers": ("List of numbers", {"type": "array", "items": {"type": "number"}}),
    "choices": ("List of choices", {"type": "array", "items": {"type": "string"}}),
    "group": ("Group of fields", {"type": "object"}),
    "groups": ("List of groups", {"type": "array", "items": {"type": "object"}}),
}
BOUNDS = {
    **dict.fromkeys(("text", "long_text"), ("minLength", "maxLength")),
    **dict.fromkeys(("integer", "number"), ("minimum", "maximum")),
    **dict.fromkeys(("texts", "numbers", "choices", "groups"), ("minItems", "maxItems")),
}
WITH_CHOICES = ("choice", "choices")
WITH_FIELDS = ("group", "groups")


class FieldProblem(ValueError):
    """Rows that say no schema; a sentence that names the row."""


@dataclass(frozen=True, slots=True)
class Field:
    """One row, as somebody typed it. `least` and `most` are values, lengths or counts, by kind.

    What the kind does not take counts for nothing: the page hides it.
    """

    name: str
    kind: str = "text"
    is_required: bool = True
    description: str = ""
    least: str = ""
    most: str = ""
    choices: str = ""


def to_schema(fields: Iterable[Field]) -> Json:
    """The schema of an object with these fields. Raises FieldProblem."""
    top: Json = _object()
    groups = {"": top}
    rows = [field for field in fields if field.name or field.description or field.choices]
    if not rows:
        raise FieldProblem("There are no fields yet. Name at least one.")
    if len(rows) > MAX_ROWS:
        raise FieldProblem(f"These are {len(rows)} fields; at most {MAX_ROWS} can be made from rows. Write the text.")
    for field in rows:
        parent, _, name = field.name.rpartition(".")
        if not name:
            raise FieldProblem("A field has no name. Name it, or remove its row.")
        if parent not in groups:
            raise FieldProblem(f"“{field.name}” needs a row “{parent}” above it that is a group or a list of groups.")
        if name in groups[parent]["properties"]:
            raise FieldProblem(f"There are two fields “{field.name}”. Rename one.")
        value = _value(field)
        groups[parent]["properties"][name] = value
        if field.is_required:
            groups[parent]["required"].append(name)
        if field.kind in WITH_FIELDS:
            groups[field.name] = value if field.kind == "group" else value["items"]
    for name, group in groups.items():
        if not group["properties"]:
            raise FieldProblem(f"The group “{name}” has no fields. Add a row “{name}.…” below it.")
    return top


def from_schema(schema: Json) -> list[Field] | None:
    """The rows that say exactly what `schema` says; None when it says more than rows can."""
    fields: list[Field] = []
    try:
        _collect(schema, "", fields)
        return fields if _text(to_schema(fields)) == _text(schema) else None
    except (FieldProblem, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _object() -> Json:
    return {"type": "object", "properties": {}, "required": [], "additionalProperties": False}


def _value(field: Field) -> Json:
    if field.kind not in KINDS:
        raise FieldProblem(f"“{field.name}” is of the kind “{field.kind[:40]}”, which does not exist. Choose another.")
    schema = json.loads(_text(KINDS[field.kind][1]))
    if field.kind == "group":
        schema = _object()
    elif field.kind == "groups":
        schema["items"] = _object()
    elif field.kind in WITH_CHOICES:
        (schema["items"] if field.kind == "choices" else schema)["enum"] = _choices(field)
    schema |= _limits(field)
    return ({"description": field.description} if field.description else {}) | schema


def _choices(field: Field) -> list[str]:
    choices = [choice.strip() for choice in re.split(r"[,\n]", field.choices) if choice.strip()]
    if not choices:
        raise FieldProblem(f"“{field.name}” is a choice without choices. Write them with commas between.")
    if len(set(choices)) < len(choices):
        raise FieldProblem(f"“{field.name}” has a choice twice. Remove one.")
    return choices


def _limits(field: Field) -> Json:
    if field.kind not in BOUNDS:
        return {}
    numbers = [_number(field, text) for text in (field.least, field.most)]
    if field.kind == "text" and numbers[1] is None:
        numbers[1] = LINE
    least, most = numbers
    if least is not None and most is not None and least > most:
        raise FieldProblem(f"The least of “{field.name}” is above its most: {least} and {most}. Swap them.")
    return {key: number for key, number in zip(BOUNDS[field.kind], numbers, strict=True) if number is not None}


def _number(field: Field, text: str) -> int | float | None:
    text = text.strip()
    pattern = r"-?\d{1,15}(\.\d{1,9})?" if field.kind == "number" else r"-?\d{1,15}"
    counts = field.kind not in ("integer", "number")
    if not text:
        return None
    if not re.fullmatch(pattern, text, re.ASCII) or (counts and text.startswith("-")):
        expected = "a count" if counts else "a number such as 2.5" if field.kind == "number" else "a whole number"
        raise FieldProblem(f"“{text[:40]}” of “{field.name}” is not what was expected there: {expected}.")
    return float(text) if "." in text else int(text)


def _collect(schema: Json, prefix: str, fields: list[Field]) -> None:
    for name, value in schema["properties"].items():
        kind = _kind(value)
        low, high = BOUNDS.get(kind, ("", ""))
        item = value.get("items", {})
        fields.append(
            Field(
                name=prefix + name,
                kind=kind,
                is_required=name in schema["required"],
                description=value.get("description", ""),
                least=str(value.get(low, "")),
                most=str(value.get(high, "")),
                choices=", ".join(value.get("enum", item.get("enum", []))),
            )
        )
        if kind in WITH_FIELDS:
            _collect(value if kind == "group" else item, f"{prefix}{name}.", fields)


def _kind(value: Json) -> str:
    item = value.get("items")
    if value["type"] == "array" and isinstance(item, dict):
        return "choices" if "enum" in item else {"object": "groups", "number": "numbers"}.get(item["type"], "texts")
    if "enum" in value:
        return "choice"
    if value["type"] == "string" and "format" not in value:
        return "text" if value.get("maxLength", LINE + 1) <= LINE else "long_text"
    of_base = {_text(base): kind for kind, (_, base) in KINDS.items()}
    return of_base.get(_text({key: value[key] for key in ("type", "format") if key in value}), "text")


def _text(schema: Json) -> str:
    return json.dumps(schema)
