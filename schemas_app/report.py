"""What becomes of a schema: what is enforced while decoding, the shortest instance, what it costs in tokens.

Also where in the text a refused schema is at fault. Knows nothing of rows or pages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from localllm.gateway import serving
from localllm.gateway.models import LanguageModel
from localllm.gateway.structured import compiler
from localllm.inference.errors import ProviderError
from localllm.inference.json_schema.document import SUBSCHEMAS, Document, Json, pointer, subschemas
from localllm.inference.json_schema.errors import SchemaRefused
from localllm.inference.json_schema.grammar import CompiledSchema
from localllm.inference.json_schema.lowering import Action
from localllm.inference.json_schema.reading import NotJson, read
from localllm.inference.json_schema.validator import ASSERTIONS
from localllm.inference.structured import instruct
from localllm.inference.types import Message

Treatment = Literal["checked", "unknown", "enforced", "ignored"]
MAX_PLACES = 6  # of one keyword that are named
ENFORCEABLE = frozenset({*ASSERTIONS, *SUBSCHEMAS, "format", "$ref", "$dynamicRef", "$recursiveRef"})
# They tell people and the model what is meant; `format` with a name of somebody's own is one of them.
DESCRIBING = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "format",
     "contentMediaType", "contentEncoding"}
)  # fmt: skip
# They hold or name schemas and say nothing themselves.
SILENT = frozenset({"$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$defs", "definitions", "$comment"})


@dataclass(frozen=True, slots=True)
class Keyword:
    """A keyword, how far it is enforced, and where it stands, as JSON pointers."""

    name: str
    treatment: Treatment
    paths: tuple[str, ...]

    @property
    def places(self) -> tuple[str, ...]:
        return self.paths[:MAX_PLACES]

    @property
    def num_more(self) -> int:
        return len(self.paths) - len(self.places)


@dataclass(frozen=True, slots=True)
class Cost:
    """In tokens of one model: what the schema adds to each prompt, and the shortest answer."""

    model: LanguageModel
    num_prompt: int
    num_shortest: int


@dataclass(frozen=True, slots=True)
class Report:
    """A schema that can be used."""

    compiled: CompiledSchema
    keywords: tuple[Keyword, ...]
    cost: Cost | None  # None while the default model is not loaded


@dataclass(frozen=True, slots=True)
class Problem:
    """A schema that cannot: why, and where its text is at fault, if that is known."""

    message: str
    path: str = ""
    keyword: str | None = None
    line: int | None = None
    column: int | None = None

    @classmethod
    def of(cls, text: str, refused: SchemaRefused) -> Problem:
        return cls(str(refused), refused.path, refused.keyword, *_place(text, refused.path))

    def __str__(self) -> str:
        named = [f"keyword {self.keyword!r}"] if self.keyword else []
        named += [f"at {self.path}"] if self.path else []
        named += [f"line {self.line}"] if self.line else []
        return f"{self.message} ({', '.join(named)})" if named else self.message


async def examine(text: str, description: str = "") -> Report | Problem:
    try:
        compiled = await compiler.compile(text)
    except SchemaRefused as exc:
        return Problem.of(text, exc)
    return Report(compiled, tuple(keywords(compiled)), await _cost(compiled, description))


def keywords(compiled: CompiledSchema) -> Iterator[Keyword]:
    """Each keyword of the schema once per treatment, those to know of first."""
    found: dict[tuple[Treatment, str], list[str]] = {}
    actions = {note.path: note.action for note in compiled.notes}
    for path, name in _occurrences(Document(compiled.text).value, ""):
        found.setdefault((_treatment(path, name, actions), name), []).append(path)
    for treatment in get_args(Treatment):
        yield from (Keyword(name, how, tuple(paths)) for (how, name), paths in found.items() if how == treatment)


def _occurrences(schema: Json, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(schema, dict):
        yield from ((pointer(path, name), name) for name in schema if name not in SILENT)
    for below, each in subschemas(schema, path):
        yield from _occurrences(each, below)


def _treatment(path: str, name: str, actions: Mapping[str, Action]) -> Treatment:
    """As noted for the keyword itself, or for one that it is a part of."""
    if actions.get(path) == "ignored" or name not in ENFORCEABLE:
        return "ignored" if name in DESCRIBING else "unknown"
    steps = path.split("/")
    above = ["/".join(steps[:count]) for count in range(1, len(steps) + 1)]
    if name in ("then", "else"):
        above.append("/".join([*steps[:-1], "if"]))
    return "checked" if any(actions.get(each) == "checked" for each in above) else "enforced"


def _place(text: str, path: str) -> tuple[int, int] | tuple[None, None]:
    """Line and column where the value at `path` begins, or where the text stops being JSON."""
    try:
        if not path:
            json.loads(text)
            return None, None
        start = read(text).spans[path][0]
    except json.JSONDecodeError as exc:
        return exc.lineno, exc.colno
    except (NotJson, KeyError, ValueError, RecursionError):
        return None, None
    return text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start)


async def _cost(compiled: CompiledSchema, description: str) -> Cost | None:
    """Exact, by the model's own template and tokenizer; nothing is loaded for it."""
    model = await LanguageModel.objects.filter(is_default=True).afirst()
    if model is None or serving.state(model).state != "ready":
        return None
    question = Message("user", "?")
    try:
        plain = await serving.count(model, (question,))
        told = await serving.count(model, instruct((question,), compiled.text, description))
        shortest = await serving.count(model, (question, Message("assistant", compiled.shortest)))
        nothing = await serving.count(model, (question, Message("assistant", "")))
    except ProviderError:
        return None
    return Cost(model, told - plain, shortest - nothing)
