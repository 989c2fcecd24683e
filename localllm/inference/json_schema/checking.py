"""What becomes of many schemas and their instances: the figures behind `checkschemas`.

Knows the vocabulary of one model and asks for generated answers through a function; loads nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Literal

import msgspec

from localllm.inference.engine.constraint import Grammars, Vocabulary
from localllm.inference.errors import ConstraintError
from localllm.inference.json_schema.algebra import Algebra, Plain, TooMuchWork
from localllm.inference.json_schema.compiler import SchemaCompiler
from localllm.inference.json_schema.document import Document, Json
from localllm.inference.json_schema.errors import SchemaRefused
from localllm.inference.json_schema.grammar import CompiledSchema, decodable
from localllm.inference.json_schema.reading import NotJson, dumps, loads
from localllm.inference.json_schema.validator import Validator

Class = Literal["exact", "relaxed", "refused"]
# The text generated for a schema; None when there was an error instead of an answer.
Generate = Callable[[CompiledSchema], Awaitable[str | None]]


class Line(msgspec.Struct, frozen=True):
    """One schema with instances that are known to be valid or not."""

    schema: Json
    id: str = ""
    valid: list[Json] = []
    invalid: list[Json] = []


class Totals(msgspec.Struct):
    """Sums over all schemas; instances of refused schemas count nowhere."""

    schemas: int = 0
    exact: int = 0
    relaxed: int = 0
    refused: int = 0
    valid_total: int = 0
    valid_accepted: int = 0
    invalid_total: int = 0
    invalid_rejected_by_constraint: int = 0
    invalid_rejected: int = 0
    generated: int = 0
    generated_valid: int = 0
    returned_invalid: int = 0


class SchemaReport(msgspec.Struct, rename={"kind": "class"}):
    """One schema: its class, what to know of it, and how short an answer can be."""

    id: str
    kind: Class
    notes: list[str]
    min_tokens: int | None = None


class Report(msgspec.Struct):
    totals: Totals
    results: list[SchemaReport]


async def check(
    lines: Iterable[str], vocabulary: Vocabulary, compiler: SchemaCompiler, generate: Generate | None = None
) -> Report:
    """Check JSONL lines `{id, schema, valid, invalid}`. Raises ValueError naming a line that is none."""
    checker = _Checker(vocabulary, compiler, generate)
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = msgspec.convert(json.loads(text), Line)
        except (ValueError, RecursionError) as exc:
            raise ValueError(
                f"Line {number} is not what was expected, {{id, schema, valid: [...], invalid: [...]}}: {exc}."
            ) from None
        await checker.check(msgspec.structs.replace(line, id=line.id or str(number)))
    return checker.report


class _Checker:
    def __init__(self, vocabulary: Vocabulary, compiler: SchemaCompiler, generate: Generate | None) -> None:
        self.report = Report(Totals(), [])
        self._compiler = compiler
        self._grammars = Grammars(vocabulary)
        self._generate = generate

    async def check(self, line: Line) -> None:
        totals = self.report.totals
        totals.schemas += 1
        text = json.dumps(line.schema, ensure_ascii=False)
        try:
            compiled = await self._compiler.compile(text, extra_properties="schema")
            grammar = self._grammars.get(compiled.digest, compiled.grammar, compiled.examples)
        except (SchemaRefused, ConstraintError) as exc:
            totals.refused += 1
            self.report.results.append(SchemaReport(line.id, "refused", [str(exc)]))
            return
        kind: Class = "exact" if compiled.is_exact else "relaxed"
        setattr(totals, kind, getattr(totals, kind) + 1)
        notes = [f"{note.action}: {note.path}" for note in compiled.notes]
        document = Document(text)
        order = in_schema_order(document) if line.valid else None
        validator = Validator(document)
        for at, instance in enumerate(line.valid):
            totals.valid_total += 1
            if order and grammar.accepts(dumps(order(instance))):
                totals.valid_accepted += 1
            else:
                notes.append(f"not accepted: valid/{at}")
        for instance in line.invalid:
            totals.invalid_total += 1
            is_rejected = not grammar.accepts(dumps(instance))
            totals.invalid_rejected_by_constraint += is_rejected
            totals.invalid_rejected += is_rejected or not validator.is_valid(instance)
        if self._generate is not None:
            await self._check_generated(compiled, validator)
        self.report.results.append(SchemaReport(line.id, kind, notes, grammar.min_tokens))

    async def _check_generated(self, compiled: CompiledSchema, validator: Validator) -> None:
        assert self._generate is not None
        totals = self.report.totals
        totals.generated += 1
        answer = await self._generate(compiled)
        if answer is None:
            return
        try:
            is_valid = validator.is_valid(loads(answer))
        except NotJson:
            is_valid = False
        totals.generated_valid += is_valid
        totals.returned_invalid += not is_valid


def in_schema_order(document: Document) -> Callable[[Json], Json]:
    """A function that puts the keys of an instance in the order of the schema."""
    plain = decodable(document).schema
    algebra = Algebra()
    schema: Plain = plain
    if isinstance(plain, dict):
        algebra.bodies = plain.get("$defs", {})
        schema = {key: value for key, value in plain.items() if key != "$defs"}

    def order(instance: Json) -> Json:
        algebra.begin()
        try:
            return algebra.ordered(schema, instance)
        except (RecursionError, TooMuchWork):
            return instance

    return order
