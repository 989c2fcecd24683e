"""From a schema as written, of any draft, to the plain form that a grammar can be made of.

What the plain form lacks is rewritten where that is exact, and otherwise left out and noted: such a keyword
is checked after decoding. Nothing here narrows: a valid instance satisfies the lowered schema.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import comb
from typing import Any, Literal

import referencing.exceptions
from referencing.jsonschema import lookup_recursive_ref

from localllm.inference.json_schema import formats, patterns
from localllm.inference.json_schema.algebra import (
    MAX_BRANCHES,
    REFERENCE,
    Algebra,
    Plain,
    TooMuchWork,
    both,
    either,
    typed,
)
from localllm.inference.json_schema.document import SUBSCHEMAS, Document, Json, pointer
from localllm.inference.json_schema.errors import SchemaRefused
from localllm.inference.json_schema.inlining import SELF_REFERENCE, combines, inlined, reachable
from localllm.inference.json_schema.validator import ASSERTIONS, LINEAR, unresolvable

Action = Literal["rewritten", "checked", "ignored"]
MAX_COUNT = 4_000  # items or properties that a grammar is made to count
NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
# Keywords whose schemas speak of other values than the one at hand.
DESCENDING = frozenset(
    {"properties", "patternProperties", "additionalProperties", "propertyNames", "unevaluatedProperties",
     "items", "prefixItems", "additionalItems", "contains", "unevaluatedItems"}
)  # fmt: skip
# Keywords that have a meaning beside another one only.
CONDITIONAL = frozenset(
    {"then", "else", "additionalItems", "minContains", "maxContains", "exclusiveMinimum", "exclusiveMaximum"}
)
RULE = frozenset({"if", "then", "else", "title", "description", "$comment"})
BASIC_TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})


@dataclass(frozen=True, slots=True)
class Note:
    """What became of a keyword that was not taken over as it stands.

    `rewritten` means enforced all the same, `checked` after decoding, `ignored` that it is an annotation.
    """

    path: str
    keyword: str
    action: Action


@dataclass(frozen=True, slots=True)
class Lowered:
    schema: Plain
    notes: tuple[Note, ...]

    @property
    def unenforced(self) -> tuple[Note, ...]:
        return tuple(note for note in self.notes if note.action == "checked")


_ASSERTIONS = frozenset(ASSERTIONS) | SUBSCHEMAS.keys() - {"$defs", "definitions"}


class _Inexact(Exception):
    """This keyword has no exact counterpart in the plain form."""


def lower(document: Document, relaxed: frozenset[str] = frozenset(), *, inline: bool = False) -> Lowered:
    """Lower a document. Keywords named in `relaxed` are left to the check afterwards.

    With `inline`, references that stand beside other keywords are replaced by what they mean.
    """
    return _Lowering(document, relaxed, inline).run()


class _Lowering:
    def __init__(self, document: Document, relaxed: frozenset[str], inline: bool) -> None:
        self._document = document
        self._relaxed = relaxed
        self._inline = inline
        self._notes: list[Note] = []
        self._algebra = Algebra()
        # Which schema refers to which about the very same value, by identity.
        self._in_place: dict[int, set[int]] = {}
        self._owner = id(document.value)
        self._names: dict[int, str] = {}
        self._names_by_text: dict[str, str] = {}
        self._notes_of: dict[str, list[Note]] = {}  # by definition: they stand or fall with its use

    def run(self) -> Lowered:
        schema = self._schema(self._document.value, self._document.resolver, "")
        self._check_in_place(self._in_place)
        bodies: dict[str, Plain] = dict(self._algebra.bodies)
        meant = reachable(schema, bodies)
        notes = [*self._notes, *(note for name in sorted(meant) for note in self._notes_of[name])]
        if self._inline:
            schema = inlined(schema, self._algebra.bodies)
            bodies = {name: inlined(body, self._algebra.bodies) for name, body in bodies.items()}
        used = reachable(schema, bodies)
        if used:
            schema = {**schema, "$defs": {name: bodies[name] for name in bodies if name in used}}
        return Lowered(schema, tuple(dict.fromkeys(notes)))

    # Notes

    def _note(self, path: str, keyword: str, action: Action) -> None:
        self._notes.append(Note(pointer(path, keyword), keyword, action))

    def _is_exact_since(self, mark: int) -> bool:
        return not any(note.action == "checked" for note in self._notes[mark:])

    # References

    def _reference(self, reference: str, resolver: Any, path: str, *, recursive: bool = False) -> Plain:
        try:
            resolved = lookup_recursive_ref(resolver) if recursive else resolver.lookup(reference)
        except (referencing.exceptions.Unresolvable, referencing.exceptions.Unretrievable):
            raise unresolvable(reference, path) from None
        except Exception as exc:
            raise SchemaRefused(
                f"$ref {reference!r} at {path or 'the top'} cannot be read: {exc}.",
                path=pointer(path, "$ref"),
                keyword="$ref",
            ) from None
        return self._definition(resolved.contents, resolved.resolver, path)

    def _definition(self, schema: Json, resolver: Any, path: str) -> Plain:
        if isinstance(schema, bool):
            return schema
        self._in_place.setdefault(self._owner, set()).add(id(schema))
        name = self._names.get(id(schema))
        if name is None:
            name = self._names[id(schema)] = f"d{len(self._names)}"
            self._algebra.bodies[name] = None
            mark = len(self._notes)
            with self._owned_by(schema):
                self._algebra.bodies[name] = self._schema(schema, resolver, self._document.path_of(schema) or path)
            if not self._is_exact_since(mark):
                self._algebra.inexact.add(name)
            self._notes_of[name] = self._notes[mark:]
            del self._notes[mark:]
        return {"$ref": REFERENCE + name}

    @contextmanager
    def _owned_by(self, schema: Json) -> Iterator[None]:
        before, self._owner = self._owner, id(schema)
        try:
            yield
        finally:
            self._owner = before

    def _check_in_place(self, edges: dict[int, set[int]]) -> None:
        """Refuse a schema that asks itself about the same value again, for ever."""
        done: set[int] = set()

        def visit(node: int, above: frozenset[int]) -> None:
            if node in above:
                raise SchemaRefused(SELF_REFERENCE, keyword="$ref")
            if node not in done:
                for each in edges.get(node, ()):
                    visit(each, above | {node})
                done.add(node)

        for node in list(edges):
            visit(node, frozenset())

    # One schema

    def _schema(self, schema: Json, resolver: Any, path: str) -> Plain:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise SchemaRefused(f"A schema was expected at {path}, not {schema!r}.", path=path)
        if "$id" in schema or "id" in schema:
            resolver = resolver.in_subresource(self._document.draft.create_resource(schema))
        if "$ref" in schema and self._document.number < 8:  # its siblings do not count
            return self._reference(schema["$ref"], resolver, path)
        if "$ref" in self._relaxed and "$ref" in schema and (others := schema.keys() & _ASSERTIONS):
            for keyword in sorted(others):
                self._note(path, keyword, "checked")
            return self._reference(schema["$ref"], resolver, path)
        lowered = _Node(self, schema, resolver, path).lowered()
        # Where a reference is replaced by its target, the target's own parts must be reached by reference.
        return self._named(lowered) if self._inline and combines(lowered) else lowered

    def _named(self, lowered: Plain) -> Plain:
        text = json.dumps(lowered)
        name = self._names_by_text.get(text)
        if name is None:
            name = self._names_by_text[text] = f"n{len(self._algebra.bodies)}"
            self._algebra.bodies[name] = lowered
            self._notes_of[name] = []
        return {"$ref": REFERENCE + name}


class _Node:
    """One schema object on its way: `plain` are its own keywords, `others` hold beside them."""

    def __init__(self, lowering: _Lowering, schema: dict[str, Json], resolver: Any, path: str) -> None:
        self._lowering = lowering
        self._algebra = lowering._algebra
        self._draft = lowering._document.number
        known = LINEAR[self._draft].VALIDATORS  # the draft's own keywords: others are annotations
        self._schema = {key: value for key, value in schema.items() if key in known or key in CONDITIONAL}
        self._resolver = resolver
        self._path = path
        self.plain: dict[str, Any] = {}
        self.others: list[Plain] = []

    def lowered(self) -> Plain:
        self._take_over()
        self._strings()
        self._arrays()
        self._objects()
        self._references()
        for keyword in ("allOf", "anyOf"):
            self._combine(keyword)
        for keyword, rewrite in (
            ("dependencies", self._dependencies),
            ("dependentRequired", self._dependencies),
            ("dependentSchemas", self._dependencies),
            ("oneOf", self._one_of),
            ("not", self._not),
            ("if", self._if),
            ("propertyNames", self._property_names),
            ("contains", self._contains),
            ("uniqueItems", self._unique_items),
            ("minProperties", self._count_properties),
            ("maxProperties", self._count_properties),
            ("unevaluatedItems", self._unevaluated_items),
            ("unevaluatedProperties", self._unevaluated_properties),
        ):
            if keyword in self._schema:
                self._rewrite(keyword, rewrite)
        return both(self.plain, *self.others)

    def _rewrite(self, keyword: str, rewrite: Any) -> None:
        mark = len(self._lowering._notes)
        try:
            if keyword in self._lowering._relaxed:
                raise _Inexact
            self._algebra.begin()
            rewrite(keyword)
        except (_Inexact, TooMuchWork):
            del self._lowering._notes[mark:]
            self._note(keyword, "checked")
            self._approximate(keyword)

    def _note(self, keyword: str, action: Action) -> None:
        self._lowering._note(self._path, keyword, action)

    def _below(self, value: Json, *steps: str | int) -> Plain:
        path = pointer(self._path, *steps)
        if steps[0] not in DESCENDING:
            return self._lowering._schema(value, self._resolver, path)
        with self._lowering._owned_by(value):
            return self._lowering._schema(value, self._resolver, path)

    def _exactly(self, value: Json, *steps: str | int) -> Plain:
        """A subschema in the plain form, or _Inexact."""
        mark = len(self._lowering._notes)
        plain = self._below(value, *steps)
        if not self._lowering._is_exact_since(mark) or not self._algebra.is_exact(plain):
            raise _Inexact
        return plain

    @property
    def _so_far(self) -> Plain:
        return both(self.plain, *self.others)

    # Keywords that are taken over

    def _take_over(self) -> None:
        schema = self._schema
        if "type" in schema:
            self._type(schema["type"])
        if "const" in schema and self._draft >= 6:
            self.plain["const"] = schema["const"]
        if isinstance(schema.get("enum"), list):
            self.plain["enum"] = schema["enum"]
        for keyword in NUMBERS:
            bound = schema.get(keyword)
            if bound is True and self._draft <= 4 and keyword.startswith("exclusive"):
                low = keyword.removeprefix("exclusive").lower()
                self.plain[keyword] = schema[low]
                self.plain.pop(low, None)
            elif isinstance(bound, int | float) and not isinstance(bound, bool):
                self.plain[keyword] = bound
        if "multipleOf" in schema and self._draft >= 4:
            self._multiple_of(schema["multipleOf"])
        for keyword in COUNTS:
            if keyword in schema and not keyword.endswith("Properties"):
                self._count(keyword, int(schema[keyword]))

    def _type(self, value: Json) -> None:
        names = value if isinstance(value, list) else [value]
        if not all(isinstance(name, str) and name in BASIC_TYPES for name in names):
            if self._draft == 3 and "any" in names:
                return
            self._note("type", "checked")
            return
        self.plain["type"] = value

    def _multiple_of(self, value: float) -> None:
        if "multipleOf" in self._lowering._relaxed or not 1e-6 <= abs(value) <= 1e15:
            self._note("multipleOf", "checked")
        else:
            self.plain["multipleOf"] = value

    def _count(self, keyword: str, value: int) -> None:
        if keyword.endswith("Items") and value > MAX_COUNT:
            self._note(keyword, "checked")
        elif not (keyword.startswith("min") and value == 0):
            self.plain[keyword] = value

    def _strings(self) -> None:
        if "pattern" in self._schema:
            self._pattern(self._schema["pattern"])
        name = self._schema.get("format")
        if not isinstance(name, str):
            return
        if name in formats.CHECKED_AFTER or ("format" in self._lowering._relaxed and name in formats.PATTERNS):
            self._note("format", "checked")
        elif name in formats.PATTERNS:
            plain: dict[str, Any] = {"pattern": formats.PATTERNS[name]}
            if name in formats.MAX_LENGTH:
                plain["maxLength"] = formats.MAX_LENGTH[name]
            self.others.append(plain)
        else:
            self._note("format", "ignored")

    def _pattern(self, pattern: str) -> None:
        translated = self._translated(pattern, "pattern")
        if r"\b" in translated or r"\B" in translated or "pattern" in self._lowering._relaxed:
            self._note("pattern", "checked")
        else:
            self.plain["pattern"] = translated

    def _translated(self, pattern: str, *steps: str) -> str:
        try:
            return patterns.translate(pattern)
        except patterns.PatternError as exc:
            path = pointer(self._path, *steps)
            raise SchemaRefused(
                f"The pattern {pattern!r} at {path} {exc}. Write it without that, or leave it out.",
                path=path,
                keyword=steps[0],
            ) from None

    def _arrays(self) -> None:
        items, prefix, name = self._schema.get("items"), self._schema.get("prefixItems"), "prefixItems"
        steps: tuple[str, ...] = ("items",)
        if isinstance(items, list):
            prefix, name, items, steps = items, "items", self._schema.get("additionalItems"), ("additionalItems",)
        elif self._draft < 9:
            prefix = None
        if isinstance(prefix, list) and prefix:
            self.plain["prefixItems"] = [self._below(each, name, at) for at, each in enumerate(prefix)]
        if isinstance(items, dict | bool):
            self.plain["items"] = self._below(items, *steps)

    def _objects(self) -> None:
        schema = self._schema
        if isinstance(schema.get("properties"), dict):
            self.plain["properties"] = {
                key: self._below(each, "properties", key) for key, each in schema["properties"].items()
            }
        if isinstance(schema.get("additionalProperties"), dict | bool):
            self.plain["additionalProperties"] = self._below(schema["additionalProperties"], "additionalProperties")
        if schema.get("patternProperties"):
            self._pattern_properties(schema["patternProperties"])
        if isinstance(schema.get("required"), list):
            self.plain["required"] = list(dict.fromkeys(schema["required"]))
        if self._draft == 3:
            self._draft_3()

    def _draft_3(self) -> None:
        properties = self._schema.get("properties", {})
        required = [key for key, each in properties.items() if isinstance(each, dict) and each.get("required") is True]
        if required:
            self.plain["required"] = required
        for keyword in ("extends", "disallow", "divisibleBy"):
            if keyword in self._schema:
                self._note(keyword, "checked")

    def _pattern_properties(self, map: dict[str, Json]) -> None:
        lowered = {
            self._translated(pattern, "patternProperties", pattern): self._below(each, "patternProperties", pattern)
            for pattern, each in map.items()
        }
        if "patternProperties" in self._lowering._relaxed and len(lowered) > 1:
            self._note("patternProperties", "checked")
            # Any name that one of them matches may have a value by any of them.
            lowered = {"|".join(f"(?:{regex})" for regex in lowered): either(lowered.values())}
        if any(r"\b" in regex or r"\B" in regex for regex in lowered):
            self._note("patternProperties", "checked")
            self.plain.pop("additionalProperties", None)
            return
        self.plain["patternProperties"] = lowered
        if self._lowering._inline:
            self._drop_named_twice(lowered)

    def _drop_named_twice(self, regexes: dict[str, Plain]) -> None:
        """A name whose pattern says the same of it would make llguidance intersect a reference with itself."""
        self.plain["properties"] = {
            key: each
            for key, each in self.plain.get("properties", {}).items()
            if [each] != [other for regex, other in regexes.items() if patterns.matches(regex, key)]
        }

    def _references(self) -> None:
        if "$ref" in self._schema:
            self._refer("$ref", self._schema["$ref"])
        if self._draft >= 9 and "$dynamicRef" in self._schema:
            self._refer_dynamically(self._schema["$dynamicRef"])
        if self._draft == 8 and "$recursiveRef" in self._schema:
            if _anchors(self._lowering._document.value, "$recursiveAnchor") > 1:
                self._note("$recursiveRef", "checked")
            else:
                self._refer("$recursiveRef", "#", recursive=True)

    def _refer(self, keyword: str, reference: Json, *, recursive: bool = False) -> None:
        if not isinstance(reference, str):
            raise SchemaRefused(f"{keyword} at {self._path} is not a text.", path=self._path, keyword=keyword)
        self.others.append(self._lowering._reference(reference, self._resolver, self._path, recursive=recursive))

    def _refer_dynamically(self, reference: Json) -> None:
        # With one anchor of that name there is only one place where it can lead.
        if isinstance(reference, str) and _anchors(self._lowering._document.value, "$dynamicAnchor") <= 1:
            self._refer("$dynamicRef", reference)
        else:
            self._note("$dynamicRef", "checked")

    # Keywords that are rewritten

    def _combine(self, keyword: str) -> None:
        members = self._schema.get(keyword)
        if not isinstance(members, list):
            return
        if keyword in self._lowering._relaxed:
            self._note(keyword, "checked")
            return
        if keyword == "anyOf":
            self.others.append(either(self._below(each, keyword, at) for at, each in enumerate(members)))
            return
        rules = {at: each for at, each in enumerate(members) if self._is_rule(each)}
        if len(rules) < 2 or not self._choose(rules):
            rules = {}
        self.others += [self._below(each, keyword, at) for at, each in enumerate(members) if at not in rules]

    def _is_rule(self, schema: Json) -> bool:
        return self._draft >= 7 and isinstance(schema, dict) and "if" in schema and schema.keys() <= RULE

    def _choose(self, rules: dict[int, Any]) -> bool:
        """Say conditions that stand side by side in `allOf` as one choice; False if they cannot be.

        One by one they would multiply: each is a choice of its own, and all of them hold.
        """
        mark = len(self._lowering._notes)
        try:
            self._algebra.begin()
            self.others.append(either(self._cases(rules)))
        except (_Inexact, TooMuchWork):
            del self._lowering._notes[mark:]
            return False
        self._note("allOf", "rewritten")
        return True

    def _cases(self, rules: dict[int, Any]) -> Iterator[Plain]:
        """Each way in which the conditions can be met or not, with what is due then."""
        cases: list[tuple[Plain, list[Plain]]] = [(True, [])]
        for at, rule in rules.items():
            condition = self._exactly(rule["if"], "allOf", at, "if")
            then, otherwise = (self._below(rule.get(name, True), "allOf", at, name) for name in ("then", "else"))
            cases = [
                (known, [*due, then if is_met else otherwise])
                for before, due in cases
                for known, is_met in self._split(before, condition)
            ]
            if len(cases) > MAX_BRANCHES:
                raise _Inexact
        for known, due in cases:
            if not any(self._algebra.disjoint(known, each) for each in due):
                yield both(known, self._all_due(due))

    def _split(self, known: Plain, condition: Plain) -> Iterator[tuple[Plain, bool]]:
        """The same in parts that meet the condition, or do not."""
        within = both(self._so_far, known)
        left = self._algebra.subtract(within, condition)
        if left is None:
            raise _Inexact
        if not self._algebra.disjoint(within, condition):
            yield self._algebra.flattened(both(known, condition)), True
        for each in left:
            yield self._algebra.flattened(both(known, each)), False

    def _all_due(self, due: list[Plain]) -> Plain:
        """All of it; where much is relaxed already, what follows of several conditions at once is left to the check."""
        due = [each for each in due if each is not True]
        if len(due) < 2 or "if" not in self._lowering._relaxed:
            return both(*due)
        self._note("allOf", "checked")
        return typed(self._algebra.types(both(*due))) or True

    def _dependencies(self, keyword: str) -> None:
        for key, needed in self._schema[keyword].items():
            if isinstance(needed, str):
                needed = [needed]
            then = {"required": needed} if isinstance(needed, list) else self._below(needed, keyword, key)
            is_present = key in self.plain.get("required", []) and self._algebra.types(self.plain) <= {"object"}
            if then is True or is_present:
                self.others.append(then)
            elif then is False:
                self.others.append({"properties": {key: False}})
            else:
                self.others.append({"anyOf": [{"properties": {key: False}}, both({"required": [key]}, then)]})
        self._note(keyword, "rewritten")

    def _one_of(self, keyword: str) -> None:
        branches = [self._below(each, keyword, at) for at, each in enumerate(self._schema[keyword])]
        context = self._so_far
        within = [both(context, branch) for branch in branches]
        options: list[Plain] = []
        for at, branch in enumerate(branches):
            rivals = [
                other for number, other in enumerate(branches)
                if number != at and not self._algebra.disjoint(within[at], other)
            ]  # fmt: skip
            if rivals and not all(map(self._algebra.is_exact, rivals)):
                raise _Inexact
            if rivals and not self._is_exact_below(keyword):
                raise _Inexact
            left = self._algebra.subtract_all(within[at], rivals) if rivals else [True]
            if left is None:
                raise _Inexact
            options += [both(branch, each) for each in left]
        if len(options) > max(MAX_BRANCHES, len(branches)):
            raise _Inexact
        self.others.append(either(options))
        self._note(keyword, "rewritten")

    def _is_exact_below(self, keyword: str) -> bool:
        below = pointer(self._path, keyword) + "/"
        return not any(note.action == "checked" and note.path.startswith(below) for note in self._lowering._notes)

    def _not(self, keyword: str) -> None:
        left = self._algebra.subtract(self._so_far, self._exactly(self._schema["not"], keyword))
        if left is None:
            raise _Inexact
        self.others.append(either(left))
        self._note(keyword, "rewritten")

    def _if(self, keyword: str) -> None:
        if self._draft < 7 or not self._schema.keys() & {"then", "else"}:
            return
        condition = self._exactly(self._schema["if"], keyword)
        then = self._below(self._schema.get("then", True), "then")
        otherwise = self._below(self._schema.get("else", True), "else")
        left = self._algebra.subtract(self._so_far, condition)
        if left is None:
            raise _Inexact
        self.others.append(either([both(condition, then), *(both(each, otherwise) for each in left)]))
        self._note(keyword, "rewritten")

    def _property_names(self, keyword: str) -> None:
        names = self._exactly(self._schema["propertyNames"], keyword)
        if names is True:
            return
        if names is False:
            self.others.append(self._empty_object())
            self._note(keyword, "rewritten")
            return
        additional = self.plain.get("additionalProperties", True)
        regexes = self.plain.get("patternProperties", {})
        kept = {
            key: each if self._algebra.admits(names, key) else False
            for key, each in self.plain.get("properties", {}).items()
        }
        listed = self._algebra.values(names)
        if listed is not None:
            for key in listed:
                if isinstance(key, str) and key not in kept:
                    kept[key] = self._algebra._property_of(self.plain, key)
            self.plain.pop("patternProperties", None)
            self.plain |= {"properties": kept, "additionalProperties": False}
        elif additional is False and not regexes:
            self.plain["properties"] = kept
        else:
            regex = self._name_pattern(names)
            if regexes:
                raise _Inexact
            self.plain |= {"patternProperties": {regex: additional}, "additionalProperties": False}
            if kept:
                self.plain["properties"] = kept
        self._note(keyword, "rewritten")

    def _name_pattern(self, names: Plain) -> str:
        """One pattern that says all that `names` says of a text."""
        parts = [part for part in self._algebra.conjuncts(names) if set(part) - {"type", "allOf", "$ref"}]
        texts: list[str] = []
        for part in parts:
            if set(part) - {"type", "pattern", "minLength", "maxLength", "allOf", "$ref"}:
                raise _Inexact
            if "pattern" in part:
                texts.append(part["pattern"])
            if "minLength" in part or "maxLength" in part:
                texts.append(f"^{patterns.ANYTHING}{{{part.get('minLength', 0)},{part.get('maxLength', '')}}}$")
        if "string" not in self._algebra.types(names) or len(texts) != 1:
            raise _Inexact
        return texts[0]

    def _empty_object(self) -> Plain:
        return {"additionalProperties": False, "properties": dict.fromkeys(self.plain.get("properties", {}), False)}

    def _contains(self, keyword: str) -> None:
        item = self._exactly(self._schema["contains"], keyword)
        modern = self._draft >= 8
        least = int(self._schema.get("minContains", 1)) if modern else 1
        most = self._schema.get("maxContains") if modern else None
        if least == 0 and most is None:
            return
        context = self._so_far
        if most is None and least == 1 and self._algebra.subtract(both(*self._all_items(context)), item) == []:
            self.others.append({"minItems": 1})
            self._note(keyword, "rewritten")
            return
        longest = self._algebra.bound(context, "maxItems")
        if longest is None or longest > 6 or least != 1 or most is not None:
            raise _Inexact
        if not self._algebra.types(context) <= {"array"}:
            raise _Inexact
        self.others.append(
            either(
                {"type": "array", "minItems": at + 1, "prefixItems": [True] * at + [item]} for at in range(int(longest))
            )
        )
        self._note(keyword, "rewritten")

    def _all_items(self, schema: Plain) -> Iterator[Plain]:
        for part in self._algebra.conjuncts(schema):
            if "items" in part and not part.get("prefixItems"):
                yield part["items"]

    def _unique_items(self, keyword: str) -> None:
        if self._schema[keyword] is not True:
            return
        context = self._so_far
        longest = self._algebra.bound(context, "maxItems")
        if longest is not None and longest <= 1:
            self._note(keyword, "rewritten")
            return
        values = self._algebra.values(both(*self._all_items(context)))
        if values is None or len(values) > 4 or "array" not in self._algebra.types(context):
            raise _Inexact
        size = min(len(values), int(longest)) if longest is not None else len(values)
        rows = [
            {"maxItems": size, "prefixItems": [{"const": value} for value in row]}
            for row in itertools.permutations(values, size)
        ]
        self.others.append(either(rows))
        self._note(keyword, "rewritten")

    def _count_properties(self, keyword: str) -> None:
        if keyword == "maxProperties" and "minProperties" in self._schema:
            return  # done together
        least, most = int(self._schema.get("minProperties", 0)), self._schema.get("maxProperties")
        context = self._so_far
        if "object" not in self._algebra.types(context):
            return
        required = self._algebra.required(context)
        names = {
            key: None for part in self._algebra.conjuncts(context) for key in part.get("properties", {})
            if self._algebra.property_schema(context, key) is not False
        }  # fmt: skip
        optional = [key for key in names if key not in required]
        is_closed = self._algebra.closed_names(context) is not None
        if most is not None and is_closed and most >= len(optional) + len(required):
            most = None
        if most is None and least <= len(required):
            return
        if most is None and least == len(required) + 1 and len(optional) <= MAX_BRANCHES:
            self.others.append(self._at_least_one(optional, least, is_closed=is_closed))
        else:
            self.others.append(self._counted(optional, len(required), least, most, is_closed=is_closed))
        self._note(keyword, "rewritten")

    def _at_least_one(self, optional: list[str], least: int, *, is_closed: bool) -> Plain:
        """One option for each name that may be the first one present."""
        options: list[Plain] = [
            {"properties": dict.fromkeys(optional[:at], False), "required": [key]} for at, key in enumerate(optional)
        ]
        if not is_closed:
            options.append({"properties": dict.fromkeys(optional, False), "minProperties": least})
        return self._of_objects(either(options))

    def _of_objects(self, schema: Plain) -> Plain:
        others = self._algebra.types(self._so_far) - {"object"}
        if not others:
            return schema
        rest = typed(others)
        if rest is None:
            raise _Inexact
        return either([both({"type": "object"}, schema), rest])

    def _counted(
        self, optional: list[str], num_required: int, least: int, most: int | None, *, is_closed: bool
    ) -> Plain:
        """One option for each set of optional names that may be present together."""
        largest = len(optional) if most is None else min(len(optional), int(most) - num_required)
        smallest = max(0, least - num_required) if is_closed else 0
        if sum(comb(len(optional), size) for size in range(smallest, largest + 1)) > MAX_BRANCHES:
            raise _Inexact
        counts = {
            key: value for key, value in (("minProperties", least), ("maxProperties", most))
            if value is not None and not is_closed
        }  # fmt: skip
        options = []
        for size in range(smallest, largest + 1):
            for present in itertools.combinations(optional, size):
                absent = {name: False for name in optional if name not in present}
                options.append({"required": list(present), "properties": absent, **counts})
        return self._of_objects(either(options))

    def _unevaluated_items(self, keyword: str) -> None:
        value = self._schema[keyword]
        if value is True:
            return
        applicators = {"$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "not", "if", "contains"}
        if applicators & self._schema.keys():
            raise _Inexact
        if "items" not in self.plain:
            self.plain["items"] = self._below(value, keyword)
        self._note(keyword, "rewritten")

    def _unevaluated_properties(self, keyword: str) -> None:
        """Where all that applies beside it names its properties without condition, it closes the object."""
        value = self._schema[keyword]
        if value is True:
            self.plain.setdefault("additionalProperties", True)  # now all are evaluated, for those around it too
            return
        named: dict[str, Plain] = {}
        regexes: dict[str, Plain] = {}
        if {"oneOf", "if", "anyOf", "dependentSchemas", "$dynamicRef", "$recursiveRef"} & self._schema.keys():
            raise _Inexact
        for part in self._algebra.conjuncts(self._so_far):
            if "anyOf" in part or "additionalProperties" in part:
                raise _Inexact
            if "$ref" in part and self._algebra.target(part) is None:
                raise _Inexact
            named |= dict.fromkeys(part.get("properties", {}), True)
            regexes |= dict.fromkeys(part.get("patternProperties", {}), True)
        self.others.append(
            {
                "properties": named,
                **({"patternProperties": regexes} if regexes else {}),
                "additionalProperties": self._below(value, keyword),
            }
        )
        self._note(keyword, "rewritten")

    # What is left of a keyword that cannot be said

    def _approximate(self, keyword: str) -> None:
        mark = len(self._lowering._notes)
        match keyword:
            case "oneOf":
                branches = enumerate(self._schema[keyword])
                self.others.append(either(self._below(each, keyword, at) for at, each in branches))
                return  # the notes of the branches stay
            case "dependencies" | "dependentSchemas" | "dependentRequired":
                return
            case "if":
                self._approximate_condition()
                return
            case "uniqueItems":
                values = self._algebra.values(both(*self._all_items(self._so_far)))
                if values is not None:
                    self.plain["maxItems"] = min(self.plain.get("maxItems", len(values)), len(values))
            case "contains" if self._draft < 8 or int(self._schema.get("minContains", 1)) >= 1:
                self.plain["minItems"] = max(self.plain.get("minItems", 0), 1)
        del self._lowering._notes[mark:]

    def _approximate_condition(self) -> None:
        then = self._below(self._schema.get("then", True), "then")
        otherwise = self._below(self._schema.get("else", True), "else")
        condition = self._below(self._schema["if"], "if")
        self.others.append(either([both(condition, then), otherwise]))


def _anchors(value: Json, keyword: str) -> int:
    if isinstance(value, dict):
        return (keyword in value) + sum(_anchors(each, keyword) for each in value.values())
    if isinstance(value, list):
        return sum(_anchors(each, keyword) for each in value)
    return 0
