"""Sets of JSON values, written as schemas in one plain form: intersection, disjointness, difference.

The plain form is 2020-12 without $id, oneOf, not, if and the like; every $ref is `#/$defs/NAME` and leads
into `Algebra.bodies`. Answers are safe: `disjoint` says True only when that is proven, `subtract` returns
None when the difference cannot be written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from localllm.inference.json_schema import patterns

Plain = Any  # True, False, or a dict in the plain form
Json = Any

NUMERIC = frozenset({"integer", "fraction"})
TYPES = frozenset({"null", "boolean", "string", "array", "object"}) | NUMERIC
MAX_VALUES = 256  # of an enumeration that is reasoned about one by one
MAX_DEPTH = 12
MAX_WORK, MAX_TOTAL_WORK = 100_000, 300_000  # steps for one question and for all; then it stays unanswered
MAX_BRANCHES = 64
REFERENCE = "#/$defs/"


class TooMuchWork(Exception):
    """The question costs more than its answer is worth."""


def same(a: Json, b: Json) -> bool:
    """Equal as JSON: 1 is 1.0, but not true."""
    return canonical(a) == canonical(b)


def canonical(value: Json) -> str:
    return json.dumps(_plain_numbers(value), sort_keys=True)


def _plain_numbers(value: Json) -> Json:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain_numbers(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain_numbers(each) for key, each in value.items()}
    return value


def both(*schemas: Plain) -> Plain:
    """What satisfies all of these."""
    conjuncts: list[Plain] = []
    for schema in schemas:
        if schema is False:
            return False
        if schema is True or schema == {}:
            continue
        members = schema["allOf"] if isinstance(schema, dict) and set(schema) == {"allOf"} else [schema]
        conjuncts += [member for member in members if not _is_among(member, conjuncts)]
    if len(conjuncts) == 1:
        return conjuncts[0]
    return {"allOf": conjuncts} if conjuncts else True


def either(schemas: Iterable[Plain]) -> Plain:
    """What satisfies one of these."""
    options: list[Plain] = []
    for schema in schemas:
        if schema is True or schema == {}:
            return True
        if schema is not False and not _is_among(schema, options):
            options.append(schema)
    if len(options) == 1:
        return options[0]
    return {"anyOf": options} if options else False


def _is_among(schema: Plain, others: list[Plain]) -> bool:
    # In Python 1 equals True, so equality alone would not do.
    return any(schema == other and json.dumps(schema) == json.dumps(other) for other in others)


def type_of(value: Json) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    kinds = {float: "fraction", str: "string", list: "array", dict: "object"}
    return kinds[type(value)]


def typed(names: Iterable[str]) -> Plain:
    """A schema for these types; None when fractions are to come without integers."""
    wanted = set(names)
    if "fraction" in wanted and "integer" not in wanted:
        return None
    if "fraction" in wanted:
        wanted = wanted - NUMERIC | {"number"}
    return {"type": sorted(wanted)} if wanted else False


def children(schema: Plain) -> Iterator[Plain]:
    """The schemas directly inside this one."""
    if not isinstance(schema, dict):
        return
    for keyword in ("properties", "patternProperties", "$defs"):
        yield from schema.get(keyword, {}).values()
    for keyword in ("allOf", "anyOf", "prefixItems"):
        yield from schema.get(keyword, [])
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield schema[keyword]


class Algebra:
    def __init__(self) -> None:
        self.bodies: dict[str, Plain | None] = {}  # None: being written
        self.inexact: set[str] = set()
        self._work = self._total_work = 0

    def begin(self) -> None:
        """A new question: its work starts to count from zero."""
        self._total_work += self._work
        self._work = 0

    def _count(self) -> None:
        self._work += 1
        if self._work > MAX_WORK or self._work + self._total_work > MAX_TOTAL_WORK:
            raise TooMuchWork

    # Looking into a schema

    def target(self, schema: Plain) -> Plain | None:
        return self.bodies.get(schema["$ref"].removeprefix(REFERENCE))

    def conjuncts(self, schema: Plain, seen: frozenset[str] = frozenset()) -> Iterator[dict[str, Any]]:
        """The schema, the members of its allOf and the targets of its references, all of which must hold.

        Where a reference is still being written, nothing is known of it, which is on the safe side.
        """
        if schema is False:
            yield {"type": []}
        if not isinstance(schema, dict):
            return
        self._count()
        yield schema
        for member in schema.get("allOf", []):
            yield from self.conjuncts(member, seen)
        if "$ref" in schema and schema["$ref"] not in seen:
            yield from self.conjuncts(self.target(schema), seen | {schema["$ref"]})

    def types(self, schema: Plain, depth: int = 0) -> frozenset[str]:
        found = TYPES
        if depth > MAX_DEPTH:
            return found
        for part in self.conjuncts(schema):
            if "type" in part:
                names = part["type"] if isinstance(part["type"], list) else [part["type"]]
                found &= {kind for name in names for kind in (NUMERIC if name == "number" else (name,))}
            if "const" in part:
                found &= {type_of(part["const"])}
            if "enum" in part:
                found &= {type_of(value) for value in part["enum"]}
            if "anyOf" in part:
                found &= frozenset().union(*(self.types(option, depth + 1) for option in part["anyOf"]))
        return frozenset(found)

    def values(self, schema: Plain) -> list[Json] | None:
        """All values that satisfy it, if they are few and listed; some more may be listed too."""
        lists = [part.get("enum", [part["const"]] if "const" in part else None) for part in self.conjuncts(schema)]
        known = [values for values in lists if values is not None and len(values) <= MAX_VALUES]
        if not known:
            kinds = self.types(schema)
            if kinds <= {"null", "boolean"}:
                return [value for value in (None, True, False) if type_of(value) in kinds]
            return None
        return [value for value in min(known, key=len) if self.admits(schema, value)]

    def admits(self, schema: Plain, value: Json) -> bool:
        """Does the value satisfy the schema? True where a reference is not written yet."""
        return all(self._part_admits(part, value) for part in self.conjuncts(schema))

    def _part_admits(self, part: dict[str, Any], value: Json) -> bool:
        if "anyOf" in part and not any(self.admits(option, value) for option in part["anyOf"]):
            return False
        if "const" in part and not same(part["const"], value):
            return False
        if "enum" in part and not any(same(each, value) for each in part["enum"]):
            return False
        if "type" in part:
            names = part["type"] if isinstance(part["type"], list) else [part["type"]]
            kind = type_of(value)
            if kind not in names and not (kind in NUMERIC and "number" in names):
                return False
        match value:
            case bool() | None:
                return True
            case int() | float():
                return _number_fits(part, value)
            case str():
                return _length_fits(part, value, "Length") and (
                    "pattern" not in part or patterns.matches(part["pattern"], value)
                )
            case list():
                prefix = part.get("prefixItems", [])
                return _length_fits(part, value, "Items") and all(
                    self.admits(prefix[at] if at < len(prefix) else part.get("items", True), item)
                    for at, item in enumerate(value)
                )
            case _:
                return (
                    _length_fits(part, value, "Properties")
                    and all(key in value for key in part.get("required", []))
                    and all(self.admits(self._property_of(part, key), each) for key, each in value.items())
                )

    def _property_of(self, part: dict[str, Any], key: str) -> Plain:
        named = part.get("properties", {})
        found = [named[key]] if key in named else []
        found += [each for regex, each in part.get("patternProperties", {}).items() if patterns.matches(regex, key)]
        return both(*found) if found else part.get("additionalProperties", True)

    def property_schema(self, schema: Plain, key: str) -> Plain:
        return both(*(self._property_of(part, key) for part in self.conjuncts(schema)))

    def item_schema(self, schema: Plain, at: int) -> Plain:
        return _item_of(self.conjuncts(schema), at)

    def required(self, schema: Plain) -> set[str]:
        return {key for part in self.conjuncts(schema) for key in part.get("required", [])}

    def closed_names(self, schema: Plain) -> set[str] | None:
        """All names that an object may have, if they are listed."""
        for part in self.conjuncts(schema):
            if part.get("additionalProperties") is False and not part.get("patternProperties"):
                return {key for key, each in part.get("properties", {}).items() if each is not False}
        return None

    def bound(self, schema: Plain, keyword: str) -> float | None:
        """The tightest of these bounds."""
        found: list[float] = [part[keyword] for part in self.conjuncts(schema) if keyword in part]
        if not found:
            return None
        return max(found) if keyword.lower().endswith("minimum") or keyword.startswith("min") else min(found)

    def flattened(self, schema: Plain) -> Plain:
        """The same as one schema of an object, where it only speaks of types and properties."""
        if any(part.keys() - {"type", "properties", "required", "allOf"} for part in self.conjuncts(schema)):
            return schema
        properties: dict[str, Plain] = {}
        for key in {key: None for part in self.conjuncts(schema) for key in part.get("properties", {})}:
            properties[key] = self.property_schema(schema, key)
            if (values := self.values(properties[key])) is not None:
                properties[key] = {"enum": values} if values else False
        kinds = typed(self.types(schema))
        plain = {"properties": properties, "required": sorted(self.required(schema))}
        return {**plain, **kinds} if isinstance(kinds, dict) else schema

    def ordered(self, schema: Plain, value: Json) -> Json:
        """The same value with its keys in the order in which a grammar of the schema has them."""
        if not isinstance(value, list | dict):
            return value
        parts = list(self._parts_for(schema, value))
        if isinstance(value, list):
            return [self.ordered(_item_of(parts, at), each) for at, each in enumerate(value)]
        named = [key for part in parts for key in part.get("properties", {})]
        names = dict.fromkeys([*named, *(key for part in parts for key in part.get("required", []))])
        regexes = [regex for part in parts for regex in part.get("patternProperties", {})]
        others = [key for key in value if key not in names]
        matched = [key for key in others if any(patterns.matches(regex, key) for regex in regexes)]
        keys = [key for key in names if key in value] + matched + [key for key in others if key not in matched]
        return {key: self.ordered(both(*(self._property_of(part, key) for part in parts)), value[key]) for key in keys}

    def _parts_for(self, schema: Plain, value: Json, depth: int = 0) -> Iterator[dict[str, Any]]:
        """All that the value satisfies of the schema, the options it takes included."""
        for part in self.conjuncts(schema):
            yield part
            for option in part.get("anyOf", []):
                if depth < MAX_DEPTH and self.admits(option, value):
                    yield from self._parts_for(option, value, depth + 1)

    # Disjoint?

    def disjoint(self, a: Plain, b: Plain, depth: int = 0) -> bool:
        """Proven to share no value."""
        self._count()
        common = self.types(a) & self.types(b)
        if not common:
            return True
        if depth > MAX_DEPTH or a is True or b is True:
            return False
        for one, other in ((a, b), (b, a)):
            values = self.values(one)
            if values is not None:
                return not any(self.admits(other, value) for value in values)
        for one, other in ((a, b), (b, a)):
            for part in self.conjuncts(one):
                if "anyOf" in part and all(
                    self.disjoint(both(other, option), both(*self._without_any_of(one, part)), depth + 1)
                    or self.disjoint(option, other, depth + 1)
                    for option in part["anyOf"]
                ):
                    return True
        return all(self._disjoint_as(kind, a, b, depth) for kind in common)

    def _without_any_of(self, schema: Plain, excluded: dict[str, Any]) -> list[Plain]:
        return [
            {key: value for key, value in part.items() if key not in ("allOf", "$ref", "anyOf")}
            for part in self.conjuncts(schema)
        ]

    def _disjoint_as(self, kind: str, a: Plain, b: Plain, depth: int) -> bool:
        match kind:
            case "object":
                return any(
                    self.disjoint(self.property_schema(a, key), self.property_schema(b, key), depth + 1)
                    for key in self.required(a) | self.required(b)
                ) or self._apart(a, b, "Properties")
            case "array":
                least = max(self.bound(a, "minItems") or 0, self.bound(b, "minItems") or 0)
                return self._apart(a, b, "Items") or any(
                    self.disjoint(self.item_schema(a, at), self.item_schema(b, at), depth + 1)
                    for at in range(min(int(least), 4))
                )
            case "string":
                return self._apart(a, b, "Length")
            case "integer" | "fraction":
                return self._ranges_apart(a, b)
        return False

    def _apart(self, a: Plain, b: Plain, what: str) -> bool:
        for one, other in ((a, b), (b, a)):
            least, most = self.bound(one, f"min{what}"), self.bound(other, f"max{what}")
            if least is not None and most is not None and least > most:
                return True
        return False

    def _ranges_apart(self, a: Plain, b: Plain) -> bool:
        for one, other in ((a, b), (b, a)):
            low, above = self.bound(one, "minimum"), self.bound(one, "exclusiveMinimum")
            high, below = self.bound(other, "maximum"), self.bound(other, "exclusiveMaximum")
            for least, is_open in ((low, False), (above, True)):
                for most, is_open_too in ((high, False), (below, True)):
                    if least is None or most is None:
                        continue
                    if least > most or (least == most and (is_open or is_open_too)):
                        return True
        return False

    # Difference

    def subtract(self, a: Plain, b: Plain, depth: int = 0) -> list[Plain] | None:
        """Schemas d such that `a` without `b` is the union of all `a and d`; None if it cannot be written."""
        self._count()
        if b is False or self.disjoint(a, b):
            return [True]
        if b is True:
            return []
        if depth > MAX_DEPTH:
            return None
        if (values := self.values(a)) is not None:
            if not self.is_exact(b):
                return None
            rest = [value for value in values if not self.admits(b, value)]
            return [{"enum": rest}] if rest else []
        pieces: list[Plain] = []
        for keyword, value in b.items():
            found = self._violations(a, b, keyword, value, depth)
            if found is None:
                return None
            pieces += [piece for piece in found if not _is_among(piece, pieces) and not self.disjoint(a, piece)]
        return pieces if len(pieces) <= MAX_BRANCHES else None

    def is_exact(self, schema: Plain, seen: frozenset[str] = frozenset()) -> bool:
        """Does it mean what was written, all the way down?"""
        self._count()
        if isinstance(schema, dict) and "$ref" in schema:
            name = schema["$ref"].removeprefix(REFERENCE)
            if name not in seen:
                seen |= {name}
                if name in self.inexact or self.bodies.get(name) is None or not self.is_exact(self.bodies[name], seen):
                    return False
        return all(self.is_exact(each, seen) for each in children(schema))

    def _violations(self, a: Plain, b: dict[str, Any], keyword: str, value: Any, depth: int) -> list[Plain] | None:
        """What breaks one assertion of `b`, as far as it matters within `a`."""
        if any(keyword in part and _is_among(part[keyword], [value]) for part in self.conjuncts(a)) and keyword not in (
            "items", "prefixItems", "additionalProperties", "patternProperties", "properties",
        ):  # fmt: skip
            return []
        match keyword:
            case "type":
                return self._other_types(a, b)
            case "enum":
                return self._other_values(a, value, depth)
            case "const":
                return self._other_values(a, [value], depth)
            case "allOf":
                return self._union(self.subtract(a, member, depth + 1) for member in value)
            case "anyOf":
                return self.subtract_all(a, value, depth + 1)
            case "$ref":
                target = self.target(b)
                if target is None or value.removeprefix(REFERENCE) in self.inexact:
                    return None
                return self.subtract(a, target, depth + 1)
            case "required":
                held = self.required(a)
                return [{"type": "object", "properties": {key: False}} for key in value if key not in held]
            case "properties":
                return self._union(self._with_property(a, key, each, depth) for key, each in value.items())
            case "patternProperties" | "additionalProperties":
                return self._other_properties(a, b, keyword, depth)
            case "prefixItems":
                return self._union(self._with_item(a, at, each, depth) for at, each in enumerate(value))
            case "items":
                return self._other_items(a, b, depth)
            case "pattern":
                return None if "string" in self.types(a) else []
            case "multipleOf":
                return None if self.types(a) & NUMERIC else []
        return self._out_of_bounds(a, keyword, value)

    def _union(self, lists: Iterable[list[Plain] | None]) -> list[Plain] | None:
        result: list[Plain] = []
        for each in lists:
            if each is None:
                return None
            result += each
        return result

    def subtract_all(self, a: Plain, options: list[Plain], depth: int = 0) -> list[Plain] | None:
        """Like `subtract`, for several at once."""
        rest: list[Plain] = [True]
        for option in options:
            following: list[Plain] = []
            for piece in rest:
                left = self.subtract(both(a, piece), option, depth)
                if left is None:
                    return None
                following += [both(piece, each) for each in left]
            rest = following
            if len(rest) > MAX_BRANCHES:
                return None
        return rest

    def _other_types(self, a: Plain, b: dict[str, Any]) -> list[Plain] | None:
        rest = self.types(a) - self.types({"type": b["type"]})
        if not rest:
            return []
        written = typed(rest)
        return None if written is None else [written]

    def _other_values(self, a: Plain, values: list[Json], depth: int) -> list[Plain] | None:
        if len(values) > MAX_VALUES:
            return None
        kinds = self.types(a)
        listed = {type_of(value) for value in values}
        # An integer is a number like any other here: 1 and 1.5 lie on one line.
        if listed & NUMERIC:
            listed |= NUMERIC
        pieces: list[Plain] = []
        if rest := kinds - listed:
            written = typed(rest)
            if written is None:
                return None
            pieces.append(written)
        if "boolean" in kinds & listed:
            pieces += [{"const": truth} for truth in (True, False) if not any(truth is value for value in values)]
        if "string" in kinds & listed:
            texts = [value for value in values if isinstance(value, str)]
            pieces.append({"type": "string", "pattern": patterns.excluding(texts)})
        if kinds & listed & NUMERIC:
            pieces += self._between(kinds, [value for value in values if type_of(value) in NUMERIC])
        structures = [structure(value) for value in values if isinstance(value, list | dict)]
        if structures and kinds & listed & {"array", "object"}:
            containers = both(a, {"type": sorted(kinds & listed & {"array", "object"})})
            left = self.subtract_all(containers, structures, depth + 1)
            if left is None:
                return None
            pieces += [both({"type": sorted(kinds & listed & {"array", "object"})}, each) for each in left]
        return pieces

    def _between(self, kinds: frozenset[str], numbers: list[float]) -> list[Plain]:
        ends = sorted(set(numbers))
        kind = "number" if "fraction" in kinds else "integer"
        gaps: list[Plain] = [{"type": kind, "exclusiveMaximum": ends[0]}]
        gaps += [{"type": kind, "exclusiveMinimum": low, "exclusiveMaximum": high} for low, high in pairwise(ends)]
        gaps.append({"type": kind, "exclusiveMinimum": ends[-1]})
        return [
            gap for gap in gaps
            if kind == "number" or gap.get("exclusiveMaximum", 2e308) - gap.get("exclusiveMinimum", -2e308) > 1
        ]  # fmt: skip

    def _with_property(self, a: Plain, key: str, schema: Plain, depth: int) -> list[Plain] | None:
        left = self.subtract(self.property_schema(a, key), schema, depth + 1)
        if left is None:
            return None
        return [{"type": "object", "required": [key], "properties": {key: each}} for each in left]

    def _with_item(self, a: Plain, at: int, schema: Plain, depth: int) -> list[Plain] | None:
        most = self.bound(a, "maxItems")
        if most is not None and at >= most:
            return []
        left = self.subtract(self.item_schema(a, at), schema, depth + 1)
        if left is None:
            return None
        return [{"type": "array", "minItems": at + 1, "prefixItems": [True] * at + [each]} for each in left]

    def _other_items(self, a: Plain, b: dict[str, Any], depth: int) -> list[Plain] | None:
        if "array" not in self.types(a):
            return []
        first = len(b.get("prefixItems", []))
        most = self.bound(a, "maxItems")
        if most is not None and most <= first + 8:
            return self._union(self._with_item(a, at, b["items"], depth) for at in range(first, int(most)))
        for part in self.conjuncts(a):
            applies = "items" in part and len(part.get("prefixItems", [])) <= first
            if applies and self.subtract(part["items"], b["items"], depth + 1) == []:
                return []
        return [{"type": "array", "minItems": first + 1}] if b["items"] is False else None

    def _other_properties(self, a: Plain, b: dict[str, Any], keyword: str, depth: int) -> list[Plain] | None:
        """Names of `a` that `b` gives a schema by pattern, or as additional ones."""
        if "object" not in self.types(a):
            return []
        regexes, named = b.get("patternProperties", {}), b.get("properties", {})
        names = self.closed_names(a)
        if names is not None:
            if keyword == "patternProperties":
                pairs = [
                    (key, each) for key in names for regex, each in regexes.items() if patterns.matches(regex, key)
                ]
            else:
                pairs = [
                    (key, b["additionalProperties"]) for key in names
                    if key not in named and not any(patterns.matches(regex, key) for regex in regexes)
                ]  # fmt: skip
            return self._union(
                self._with_property(a, key, each, depth) for key, each in sorted(pairs, key=lambda p: p[0])
            )
        if keyword == "patternProperties":
            held = [part.get("patternProperties", {}) for part in self.conjuncts(a)]
            missing = [regex for regex, each in regexes.items() if all(h.get(regex, ...) != each for h in held)]
            return [] if not missing else None
        if b["additionalProperties"] is True:
            return []
        for part in self.conjuncts(a):
            is_narrower = set(part.get("properties", {})) <= set(named) and (
                set(part.get("patternProperties", {})) <= set(regexes)
            )
            if is_narrower and part.get("additionalProperties") == b["additionalProperties"]:
                return []
        return None

    def _out_of_bounds(self, a: Plain, keyword: str, value: Any) -> list[Plain] | None:
        opposite = {
            "minimum": "exclusiveMaximum", "exclusiveMaximum": "minimum",
            "maximum": "exclusiveMinimum", "exclusiveMinimum": "maximum",
        }  # fmt: skip
        if keyword in opposite:
            return [{"type": "number", opposite[keyword]: value}]
        for what, kind in (("Length", "string"), ("Items", "array"), ("Properties", "object")):
            if keyword == f"min{what}":
                return [{"type": kind, f"max{what}": value - 1}] if value > 0 else []
            if keyword == f"max{what}":
                return [{"type": kind, f"min{what}": value + 1}]
        return None


def _item_of(parts: Iterable[dict[str, Any]], at: int) -> Plain:
    items = []
    for part in parts:
        prefix = part.get("prefixItems", [])
        items.append(prefix[at] if at < len(prefix) else part.get("items", True))
    return both(*items)


def structure(value: Json) -> Plain:
    """The schema of exactly this value, without const for arrays and objects."""
    if isinstance(value, list):
        return {
            "type": "array", "minItems": len(value), "maxItems": len(value),
            "prefixItems": [structure(each) for each in value], "items": False,
        }  # fmt: skip
    if isinstance(value, dict):
        return {
            "type": "object", "properties": {key: structure(each) for key, each in value.items()},
            "required": list(value), "additionalProperties": False,
        }  # fmt: skip
    return {"const": value}


def _number_fits(part: dict[str, Any], value: float) -> bool:
    return (
        value >= part.get("minimum", value)
        and value <= part.get("maximum", value)
        and ("exclusiveMinimum" not in part or value > part["exclusiveMinimum"])
        and ("exclusiveMaximum" not in part or value < part["exclusiveMaximum"])
        and ("multipleOf" not in part or _is_multiple(value, part["multipleOf"]))
    )


def _is_multiple(value: float, of: float) -> bool:
    ratio = value / of
    return abs(ratio - round(ratio)) < 1e-9 * max(1.0, abs(ratio))


def _length_fits(part: dict[str, Any], value: Any, what: str) -> bool:
    return bool(part.get(f"min{what}", 0) <= len(value) <= part.get(f"max{what}", float("inf")))
