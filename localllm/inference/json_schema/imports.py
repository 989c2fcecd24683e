"""Schemas from what people have at hand: `model_json_schema()` output and examples of the data.

What comes out is a draft for the editor, which checks it like any other text. Pydantic source has a module of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from localllm.inference.json_schema.document import MAX_DEPTH
from localllm.inference.json_schema.formats import CHECKS
from localllm.inference.json_schema.reading import NotJson, loads

MAX_CHARS = 1 << 18
# A text that looks like one of these is taken for it when all the texts at that place do.
GUESSED_FORMATS = ("date", "date-time", "time", "email", "uuid", "uri")

Json = Any


class ImportProblem(ValueError):
    """What was pasted cannot be taken over; a sentence that says why and what would do."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A schema to begin with, and what of the source it does not say."""

    schema: Json
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return json.dumps(self.schema, indent=2, ensure_ascii=False)


def from_json_schema(text: str) -> Draft:
    """What `model_json_schema()` printed, also wrapped as a response format or as a function."""
    value = _parse(text)
    if not isinstance(value, dict):
        raise ImportProblem('This is JSON, but no schema. Expected an object such as {"type": "object", …}.')
    for wrapper, key in (("json_schema", "schema"), ("function", "parameters")):
        inner = value.get(wrapper)
        value = inner if isinstance(inner, dict) else value
        if isinstance(value.get(key), dict) and not value.keys() & {"properties", "$ref", "anyOf", "allOf"}:
            value = value[key]
    return Draft(value)


def from_example(text: str) -> Draft:
    """The schema that one JSON example, or several of them one per line, suggest."""
    examples = _documents(text)
    return Draft(infer(examples))


def infer(values: list[Json], depth: int = 0) -> Json:
    """A schema that all `values` satisfy, and that says what they have in common."""
    if depth > MAX_DEPTH:
        raise ImportProblem(f"The example nests more than {MAX_DEPTH} levels deep. Paste a flatter one.")
    kinds: dict[str, list[Json]] = {}
    for value in values:
        kinds.setdefault(_kind(value), []).append(value)
    if "number" in kinds:
        kinds["number"] += kinds.pop("integer", [])
    schemas = [_schema_of(kind, found, depth) for kind, found in kinds.items()]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas} if schemas else {}


def _schema_of(kind: str, values: list[Json], depth: int) -> Json:
    if kind == "object":
        names = list(dict.fromkeys(name for value in values for name in value))
        return {
            "type": "object",
            "properties": {name: infer([v[name] for v in values if name in v], depth + 1) for name in names},
            "required": [name for name in names if all(name in value for value in values)],
            "additionalProperties": False,
        }
    if kind == "array":
        items = infer([item for value in values for item in value], depth + 1)
        return {"type": "array", "items": items} if items else {"type": "array"}
    if kind == "string":
        guessed = next((name for name in GUESSED_FORMATS if all(_looks_like(name, value) for value in values)), None)
        return {"type": "string", "format": guessed} if guessed else {"type": "string"}
    return {"type": kind}


def _looks_like(format: str, text: str) -> bool:
    return CHECKS[format](text) and (format != "uri" or "://" in text)  # "a:b" is a URI too


def _kind(value: Json) -> str:
    kinds = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
    return kinds.get(type(value), "null")


def _documents(text: str) -> list[Json]:
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        return [_parse(text)]
    except ImportProblem:
        if len(lines) < 2 or not all(line.lstrip().startswith(("{", "[")) for line in lines):
            raise
    return [_parse(line) for line in lines]


def _parse(text: str) -> Json:
    if len(text) > MAX_CHARS:
        raise ImportProblem(
            f"This is {len(text):,} characters long; at most {MAX_CHARS:,} can be taken over. Paste a shorter one."
        )
    try:
        return loads(text)
    except NotJson as exc:
        raise ImportProblem(f"This is not JSON: {exc}.") from None
