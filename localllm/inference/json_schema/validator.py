"""The judge of every result: `jsonschema`, with patterns in linear time, formats asserted, nothing fetched.

It reads the schema as it was written and knows nothing of how a result was made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import jsonschema.exceptions  # type: ignore[import-untyped]
import jsonschema.validators  # type: ignore[import-untyped]
import referencing.exceptions

from localllm.inference.json_schema import formats, patterns
from localllm.inference.json_schema.document import Document, Json, pointer
from localllm.inference.json_schema.errors import SchemaRefused

MAX_ERRORS = 8
VALIDATORS = {
    3: jsonschema.Draft3Validator,
    4: jsonschema.Draft4Validator,
    6: jsonschema.Draft6Validator,
    7: jsonschema.Draft7Validator,
    8: jsonschema.Draft201909Validator,
    9: jsonschema.Draft202012Validator,
}
# Keywords of the "validation" vocabulary, which a meta-schema of somebody's own may leave out.
ASSERTIONS = (
    "type", "const", "enum", "multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum", "maxLength",
    "minLength", "pattern", "maxItems", "minItems", "uniqueItems", "maxContains", "minContains", "maxProperties",
    "minProperties", "required", "dependentRequired",
)  # fmt: skip
Errors = Iterator[jsonschema.exceptions.ValidationError]


@dataclass(frozen=True, slots=True)
class Violation:
    """Where an instance breaks the schema: a pointer into the instance, one into the schema, a sentence."""

    path: str
    schema_path: str
    message: str


def _nothing(validator: Any, value: Json, instance: Json, schema: Json) -> Errors:
    yield from ()


def _pattern(validator: Any, pattern: str, instance: Json, schema: Json) -> Errors:
    if isinstance(instance, str) and not patterns.search(pattern, instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, map: Mapping[str, Json], instance: Json, schema: Json) -> Errors:
    if isinstance(instance, dict):
        for pattern, subschema in map.items():
            for key, value in instance.items():
                if patterns.search(pattern, key):
                    yield from validator.descend(value, subschema, path=key, schema_path=pattern)


def _additional_properties(validator: Any, additional: Json, instance: Json, schema: Json) -> Errors:
    if not isinstance(instance, dict):
        return
    extras = [key for key in instance if not _is_named(key, schema)]
    if validator.is_type(additional, "object"):
        for key in extras:
            yield from validator.descend(instance[key], additional, path=key)
    elif additional is False and extras:
        names = ", ".join(map(repr, extras))
        yield jsonschema.ValidationError(f"Additional properties are not allowed: {names}")


def _is_named(key: str, schema: Json) -> bool:
    return key in schema.get("properties", {}) or any(
        patterns.search(pattern, key) for pattern in schema.get("patternProperties", {})
    )


def _unevaluated_properties(validator: Any, unevaluated: Json, instance: Json, schema: Json) -> Errors:
    if not isinstance(instance, dict):
        return
    siblings = {keyword: value for keyword, value in schema.items() if keyword != "unevaluatedProperties"}
    seen = _evaluated(validator, instance, siblings)
    for key, value in instance.items():
        if key not in seen:
            for error in validator.descend(value, unevaluated, path=key, schema_path=key):
                yield jsonschema.ValidationError(
                    f"Unevaluated property {key!r} is not allowed"
                    if unevaluated is False
                    else f"Unevaluated property {key!r}: {error.message}"
                )
                break


def _evaluated(validator: Any, instance: dict[str, Json], schema: Json) -> set[str]:
    """Names of the properties that `schema`, or what applies together with it, has looked at."""
    if not isinstance(schema, dict):
        return set()
    seen: set[str] = set()
    for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
        if keyword in schema:
            seen |= _evaluated_by_reference(validator, keyword, instance, schema)
    names = schema.get("properties", {})
    seen.update(key for key in instance if key in names)
    seen.update(
        key for key in instance for pattern in schema.get("patternProperties", {}) if patterns.search(pattern, key)
    )
    if "additionalProperties" in schema or "unevaluatedProperties" in schema:
        seen.update(key for key in instance if not _is_named(key, schema))
    for key, subschema in schema.get("dependentSchemas", {}).items():
        if key in instance:
            seen |= _evaluated(validator, instance, subschema)
    for keyword in ("allOf", "anyOf", "oneOf"):
        for subschema in schema.get(keyword, []):
            if _holds(validator, instance, subschema):
                seen |= _evaluated(validator, instance, subschema)
    if "if" in schema:
        if _holds(validator, instance, schema["if"]):
            seen |= _evaluated(validator, instance, schema["if"])
            seen |= _evaluated(validator, instance, schema.get("then", True))
        else:
            seen |= _evaluated(validator, instance, schema.get("else", True))
    return seen


def _holds(validator: Any, instance: Json, schema: Json) -> bool:
    return next(validator.descend(instance, schema), None) is None


def _evaluated_by_reference(validator: Any, keyword: str, instance: dict[str, Json], schema: Json) -> set[str]:
    resolver = validator._resolver
    if keyword == "$recursiveRef":
        resolved = jsonschema.validators.referencing.jsonschema.lookup_recursive_ref(resolver)
    else:
        resolved = resolver.lookup(schema[keyword])
    there = validator.evolve(schema=resolved.contents, _resolver=resolved.resolver)
    return _evaluated(there, instance, resolved.contents)


def _checker() -> jsonschema.FormatChecker:
    checker = jsonschema.FormatChecker(formats=())
    for name, check in formats.CHECKS.items():
        checker.checks(name)(_on_text(check))
    return checker


def _on_text(check: Callable[[str], bool]) -> Callable[[object], bool]:
    return lambda instance: not isinstance(instance, str) or check(instance)


FORMATS = _checker()
LINEAR = {
    number: jsonschema.validators.extend(
        base,
        {
            "pattern": _pattern,
            "patternProperties": _pattern_properties,
            "additionalProperties": _additional_properties,
            **({"unevaluatedProperties": _unevaluated_properties} if number >= 8 else {}),
        },
    )
    for number, base in VALIDATORS.items()
}


class Validator:
    """Judges instances by one schema. Raises SchemaRefused when the document is no schema of its draft."""

    def __init__(self, document: Document, *, asserts_formats: bool = True) -> None:
        self._document = document
        kind = LINEAR[document.number]
        if not document.has_assertions:
            kind = jsonschema.validators.extend(kind, dict.fromkeys(ASSERTIONS, _nothing))
        self._validator = kind(
            document.value, registry=document.registry, format_checker=FORMATS if asserts_formats else None
        )

    def check_schema(self) -> None:
        """Does the document obey the meta-schema of its draft, and can its patterns run?"""
        kind = LINEAR[self._document.number]
        error = jsonschema.exceptions.best_match(kind(kind.META_SCHEMA).iter_errors(self._document.value))
        if error is not None:
            path = pointer("", *error.absolute_path)
            raise SchemaRefused(
                f"{path or 'The schema'} is not allowed in a schema: {shortened(error.message)}.",
                path=path,
                keyword=str(error.absolute_path[-1]) if error.absolute_path else None,
            )

    def is_valid(self, instance: Json) -> bool:
        return not self.violations(instance, limit=1)

    def violations(self, instance: Json, limit: int = MAX_ERRORS) -> list[Violation]:
        """What is wrong with an instance, the most telling first; empty when it is valid."""
        try:
            errors = _first(self._validator.iter_errors(instance), limit)
        except referencing.exceptions.Unresolvable as exc:
            raise unresolvable(exc.ref, "") from None
        except RecursionError:
            return [Violation("", "", "The instance or the schema's references nest too deep to be checked.")]
        errors.sort(key=jsonschema.exceptions.relevance, reverse=True)
        return [
            Violation(
                pointer("", *error.absolute_path),
                pointer("", *error.absolute_schema_path),
                shortened(error.message),
            )
            for error in errors
        ]


def unresolvable(reference: str, path: str) -> SchemaRefused:
    return SchemaRefused(
        f"$ref {reference!r} at {path or 'the top'} leads nowhere in this schema, and nothing is fetched "
        "from elsewhere. Copy what it means into $defs and refer to that.",
        path=pointer(path, "$ref"),
        keyword="$ref",
    )


def _first(errors: Iterable[jsonschema.exceptions.ValidationError], limit: int) -> list[Any]:
    found = []
    for error in errors:
        found.append(error)
        if len(found) == limit:
            break
    return found


def shortened(message: str, limit: int = 300) -> str:
    return message if len(message) <= limit else f"{message[: limit // 2]} … {message[-limit // 2 :]}"
