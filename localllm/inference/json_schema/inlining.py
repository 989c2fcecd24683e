"""Schemas in the plain form whose references stand beside other keywords, or meet in an allOf, without them.

llguidance cannot intersect a reference with something else when it leads back to where it stands; what it
means, it can. Knows the plain form and the definitions, nothing of schemas as written.
"""

from __future__ import annotations

from collections.abc import Mapping

from localllm.inference.json_schema.algebra import REFERENCE, Plain, both, children
from localllm.inference.json_schema.errors import SchemaRefused

SELF_REFERENCE = (
    "The schema refers to itself before it says anything, so that no value can be judged by it. "
    "Put the $ref inside properties or items."
)
# Keywords that have a meaning only together.
GROUPS = {
    "properties": "object", "patternProperties": "object", "additionalProperties": "object",
    "items": "array", "prefixItems": "array",
}  # fmt: skip


Bodies = Mapping[str, Plain]


def inlined(schema: Plain, bodies: Bodies) -> Plain:
    """Replace references beside other keywords, or within an allOf, by their targets in `bodies`."""
    if isinstance(schema, list):
        return [inlined(each, bodies) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if combines(schema):
        schema = _fused(_expanded(schema, bodies, frozenset()))
    return {
        key: value if key in ("enum", "const") else
        {name: inlined(each, bodies) for name, each in value.items()} if isinstance(value, dict)
        and key in ("properties", "patternProperties") else inlined(value, bodies)
        for key, value in schema.items()
    }  # fmt: skip


def _expanded(schema: Plain, bodies: Bodies, seen: frozenset[str]) -> Plain:
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(REFERENCE)
        if name in seen:
            raise SchemaRefused(SELF_REFERENCE, keyword="$ref")
        return _expanded(bodies[name], bodies, seen | {name})
    result = dict(schema)
    for keyword in ("allOf", "anyOf"):
        if keyword in result:
            result[keyword] = [_expanded(each, bodies, seen) for each in result[keyword]]
    return result


def combines(schema: Plain) -> bool:
    """Must several schemas hold at once?"""
    return isinstance(schema, dict) and ("allOf" in schema or ("anyOf" in schema and len(schema) > 1))


def _fused(schema: Plain) -> Plain:
    """Several schemas that must hold at once as one, as far as they speak of different things."""
    if not isinstance(schema, dict):
        return schema
    own = {key: value for key, value in schema.items() if key not in ("allOf", "anyOf")}
    members = [own, *map(_fused, schema.get("allOf", []))]
    if "anyOf" in schema:
        members.append({"anyOf": [_fused(option) for option in schema["anyOf"]]})
    parts: list[Plain] = []
    for member in sorted(members, key=lambda member: isinstance(member, dict) and "anyOf" in member):
        parts = _fused_into(parts, member)
    return both(*parts)


def _fused_into(parts: list[Plain], member: Plain) -> list[Plain]:
    if member is True or member == {}:
        return parts
    for at, part in enumerate(parts):
        if (fused := _fuse(part, member)) is not None:
            return [*parts[:at], fused, *parts[at + 1 :]]
    return [*parts, member]


def _fuse(a: Plain, b: Plain) -> Plain | None:
    if not isinstance(a, dict) or not isinstance(b, dict) or "allOf" in a or "allOf" in b:
        return None
    if set(b) == {"anyOf"} and "anyOf" not in a:
        options = [_fuse(a, option) for option in b["anyOf"]]
        return None if any(option is None for option in options) else {"anyOf": options}
    groups = {GROUPS.get(key, key) for key in a}
    if "anyOf" in a or "anyOf" in b or "$ref" in a or "$ref" in b:
        return None
    result = dict(a)
    for key, value in b.items():
        if key == "type":
            if isinstance(value, str) and result.get("type", value) == value:
                result["type"] = value
                continue
        elif key == "required":
            result["required"] = list(dict.fromkeys([*result.get("required", []), *value]))
            continue
        elif (
            key == "properties"
            and not b.keys() & {"additionalProperties", "patternProperties"}
            and not (a.keys() & {"additionalProperties", "patternProperties"})
        ):
            named = result.get("properties", {})
            if not named.keys() & value.keys():
                result["properties"] = named | value
                continue
        if GROUPS.get(key, key) in groups:
            return None
        result[key] = value
    return result


def reachable(schema: Plain, bodies: Bodies) -> set[str]:
    """Names of the definitions that the schema leads to."""
    found: set[str] = set()
    ahead = [schema]
    while ahead:
        value = ahead.pop()
        if isinstance(value, dict) and "$ref" in value:
            name = value["$ref"].removeprefix(REFERENCE)
            if name not in found:
                found.add(name)
                ahead.append(bodies[name])
        ahead += children(value)
    return found
