"""A JSON Schema as somebody wrote it: parsed within limits, its draft known, its references local.

Nothing is ever fetched: a reference leads into the document itself or to a published meta-schema.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Literal, cast

import jsonschema_specifications  # type: ignore[import-untyped]
import referencing.exceptions
import referencing.jsonschema
from referencing import Resource

from localllm.inference.json_schema.errors import SchemaRefused

MAX_BYTES = 256 << 10
MAX_DEPTH = 60  # schemas within schemas
MAX_NESTING = 200  # brackets within brackets
MAX_PROPERTIES = 2_000  # per object
MAX_ENUM = 20_000
DEFAULT_DRAFT = referencing.jsonschema.DRAFT202012
DRAFTS = {
    "http://json-schema.org/draft-03/schema": referencing.jsonschema.DRAFT3,
    "http://json-schema.org/draft-04/schema": referencing.jsonschema.DRAFT4,
    "http://json-schema.org/draft-06/schema": referencing.jsonschema.DRAFT6,
    "http://json-schema.org/draft-07/schema": referencing.jsonschema.DRAFT7,
    "https://json-schema.org/draft/2019-09/schema": referencing.jsonschema.DRAFT201909,
    "https://json-schema.org/draft/2020-12/schema": referencing.jsonschema.DRAFT202012,
}
NUMBERS = dict(zip(DRAFTS.values(), (3, 4, 6, 7, 8, 9), strict=True))

Json = Any  # what json.loads returns
Shape = Literal["one", "list", "map", "mixed"]
# Keywords whose value holds schemas: one, a list of them, a map of them, or any of these (and no schemas).
SUBSCHEMAS: dict[str, Shape] = {
    "additionalItems": "one", "additionalProperties": "one", "contains": "one", "contentSchema": "one",
    "else": "one", "if": "one", "items": "mixed", "not": "one", "propertyNames": "one", "then": "one",
    "unevaluatedItems": "one", "unevaluatedProperties": "one", "extends": "mixed", "disallow": "mixed",
    "allOf": "list", "anyOf": "list", "oneOf": "list", "prefixItems": "list", "type": "mixed",
    "$defs": "map", "definitions": "map", "dependencies": "map", "dependentSchemas": "map",
    "patternProperties": "map", "properties": "map",
}  # fmt: skip


def pointer(path: str, *steps: str | int) -> str:
    """A JSON pointer, further down."""
    return path + "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def subschemas(schema: Json, path: str) -> Iterator[tuple[str, Json]]:
    """The schemas directly inside this one, each with its pointer."""
    if not isinstance(schema, dict):
        return
    for keyword, shape in SUBSCHEMAS.items():
        value = schema.get(keyword)
        here = pointer(path, keyword)
        if isinstance(value, dict):
            if shape == "map":
                yield from ((pointer(here, name), each) for name, each in value.items())
            elif shape in ("one", "mixed"):
                yield here, value
        elif isinstance(value, list) and shape in ("list", "mixed"):
            yield from ((pointer(here, at), each) for at, each in enumerate(value) if isinstance(each, dict | bool))


class Document:
    """A parsed schema. Raises SchemaRefused for what is over the limits or no schema at all.

    `library`: further schemas by their URI, which references may lead to. Others do not exist.
    """

    def __init__(self, text: str, library: Mapping[str, Json] | None = None) -> None:
        size = len(text.encode("utf-8", "replace"))
        if size > MAX_BYTES:
            raise SchemaRefused(
                f"The schema is {size:,} bytes long; at most {MAX_BYTES:,} are allowed. Split it into smaller ones."
            )
        self.text = text
        self._library = library or {}
        self.value = _parse(text)
        self.draft = _draft(self.value)
        self.number = NUMBERS[self.draft]
        self._paths: dict[int, str] = {}
        self._check(self.value, "", 0)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode("utf-8", "replace")).hexdigest()

    def path_of(self, schema: Json) -> str:
        """Where this very object stands in the document; '' when it is from elsewhere."""
        return self._paths.get(id(schema), "")

    @cached_property
    def registry(self) -> referencing.jsonschema.SchemaRegistry:
        """The document itself and the published meta-schemas; everything else does not exist."""
        resource: Resource[Json] = self.draft.create_resource(self.value)
        published = cast(referencing.jsonschema.SchemaRegistry, jsonschema_specifications.REGISTRY)
        others = [(uri, _resource(schema)) for uri, schema in self._library.items()]
        try:
            complete = published.with_resources(others).with_resource(resource.id() or "", resource)
        except Exception as exc:  # an $id that is no URI
            raise SchemaRefused(f"The schema's $id cannot be read: {exc}.", keyword="$id") from exc
        # What is found on the way is noted when a reference first leads there, not now: a document may
        # hold what its draft does not know, such as a boolean schema in draft-04.
        return cast(referencing.jsonschema.SchemaRegistry, complete)

    @property
    def has_assertions(self) -> bool:
        """Does its meta-schema know the validation vocabulary? All published ones do."""
        declared = self.value.get("$schema") if isinstance(self.value, dict) else None
        vocabularies = self._library.get(declared, {}).get("$vocabulary") if isinstance(declared, str) else None
        return vocabularies is None or any(uri.endswith("/vocab/validation") for uri in vocabularies)

    @cached_property
    def resolver(self) -> referencing._core.Resolver[Json]:
        return self.registry.resolver(self.draft.create_resource(self.value).id() or "")

    def _check(self, schema: Json, path: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise SchemaRefused(
                f"The schema nests more than {MAX_DEPTH} levels deep at {path}. Use $ref and $defs to flatten it.",
                path=path,
            )
        if not isinstance(schema, dict):
            return
        self._paths.setdefault(id(schema), path)
        for keyword, limit in (("properties", MAX_PROPERTIES), ("enum", MAX_ENUM), ("required", MAX_PROPERTIES)):
            value = schema.get(keyword)
            if isinstance(value, dict | list) and len(value) > limit:
                raise SchemaRefused(
                    f"{keyword!r} at {path or 'the top'} has {len(value):,} entries; at most {limit:,} are allowed.",
                    path=pointer(path, keyword),
                    keyword=keyword,
                )
        for below, each in subschemas(schema, path):
            self._check(each, below, depth + 1)


def _resource(schema: Json) -> Resource[Json]:
    return _draft(schema).create_resource(schema)


def _parse(text: str) -> Json:
    nesting = deepest = 0
    for char in text:  # an upper bound: brackets in strings count too
        if char in "[{":
            nesting += 1
            deepest = max(deepest, nesting)
        elif char in "]}":
            nesting -= 1
    if deepest > MAX_NESTING and _nesting(text) > MAX_NESTING:
        raise SchemaRefused(f"The schema nests more than {MAX_NESTING} brackets deep. Use $ref and $defs.")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as exc:
        raise SchemaRefused(f"The schema is not JSON: {exc.msg} in line {exc.lineno}, column {exc.colno}.") from None
    if not isinstance(value, dict | bool):
        raise SchemaRefused(
            f"A schema is a JSON object, or true or false, but this is {_kind(value)}. "
            'Begin with {"type": "object", "properties": {...}}.'
        )
    return value


def _nesting(text: str) -> int:
    depth = deepest = 0
    in_string = escaped = False
    for char in text:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


def _refuse_constant(name: str) -> float:
    raise SchemaRefused(f"The schema is not JSON: {name} is no JSON number.")


def _kind(value: Json) -> str:
    kinds = {list: "an array", str: "a string", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def _draft(value: Json) -> referencing.Specification[Json]:
    declared = value.get("$schema") if isinstance(value, dict) else None
    return DRAFTS.get(declared.rstrip("#"), DEFAULT_DRAFT) if isinstance(declared, str) else DEFAULT_DRAFT
