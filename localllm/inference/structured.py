"""From a request and a schema to data that satisfies the schema, or an error that says why not.

Whatever answers, every result is validated here; how it was guaranteed is part of the result. Knows no
provider by name: `ask` is anything that streams events for a request, and may lie.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Literal

import msgspec

from localllm.inference.errors import ConstraintError, ProviderError
from localllm.inference.json_schema.document import Document, Json, pointer
from localllm.inference.json_schema.errors import SchemaRefused
from localllm.inference.json_schema.grammar import CompiledSchema
from localllm.inference.json_schema.lowering import Note
from localllm.inference.json_schema.reading import NotJson, candidates, dumps, loads, read, repeats_keys
from localllm.inference.json_schema.validator import Validator, Violation
from localllm.inference.types import ChatRequest, Chunk, Event, Finished, FinishReason, Message, TokenLogprob, Usage

Guarantee = Literal["constrained", "validated", "repaired"]
Kind = Literal["truncated", "unsatisfiable", "unsupported", "invalid_after_retries"]
Ask = Callable[[ChatRequest], AsyncGenerator[Event]]

MAX_ATTEMPTS = 3
MAX_SKETCH = 4_000  # characters of a schema that are put into a prompt as they are
MAX_MENDS = 1_000
MAX_JUDGED = 24  # tokens of a value whose probability says anything
ANNOTATIONS = frozenset({"$schema", "$id", "id", "$comment", "examples", "default", "readOnly", "writeOnly"})
EVERYTHING = Note("", "*", "checked")


class StructuredError(ProviderError):
    """No valid result. `candidate` is the best that was given, `violations` what is wrong with it."""

    def __init__(
        self, message: str, kind: Kind, *, candidate: Json = None, violations: Sequence[Violation] = ()
    ) -> None:
        super().__init__(message, permanent=True)
        self.kind = kind
        self.candidate = candidate
        self.violations = tuple(violations)


class FieldReport(msgspec.Struct, frozen=True):
    """How sure the model was of a value (0 to 1, if known), and where the input says it, in characters."""

    probability: float | None
    source: tuple[int, int] | None


class Attempt(msgspec.Struct, frozen=True):
    """A new try begins; what came of the one before is void."""

    number: int


class StructuredResult(msgspec.Struct, frozen=True, kw_only=True):
    """Valid data, as a value and as JSON: as it was written, unless that is not the same to every reader.

    `unenforced`: keywords that only validation vouches for. `logprobs` are those of the text; none where it was
    mended or they are not known. `reasoning` is what a thinking model wrote before.
    """

    data: Any
    text: str
    reasoning: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    guarantee: Guarantee
    unenforced: tuple[Note, ...]
    attempts: int
    fields: dict[str, FieldReport]
    usage: Usage
    finish_reason: FinishReason


async def structured(
    ask: Ask,
    request: ChatRequest,
    schema: CompiledSchema,
    *,
    is_constrained: bool,
    source: str = "",
    max_attempts: int = MAX_ATTEMPTS,
) -> AsyncGenerator[Event | Attempt | StructuredResult]:
    """Ask until the answer satisfies the schema, three times at most; the last item is the result.

    `is_constrained`: the provider was told to decode by this very schema. `source`: the text that values
    are looked for in. Raises StructuredError, and ProviderError when there is no answer at all.
    """
    validator = Validator(Document(schema.text))
    best = _Judged()
    usage = Usage()
    messages = request.messages
    for number in range(1, max_attempts + 1):
        yield Attempt(number)
        answer = _Answer()
        try:
            async with aclosing(ask(msgspec.structs.replace(request, messages=messages))) as events:
                async for event in events:
                    answer.note(event)
                    yield event
        except ConstraintError as exc:
            raise StructuredError(str(exc), exc.kind) from exc
        usage = _sum(usage, answer.usage)
        judged = _judge(request.prefix + answer.text, validator)
        if judged.is_valid:
            yield _result(judged, answer, schema, usage, number, is_constrained=is_constrained, source=source)
            return
        best = judged if judged.is_better_than(best) else best
        if answer.reason == "cancelled":
            break
        messages = _corrected(request.messages, answer.text, judged)
        request = _with_other_seed(request)
    raise _failure(best, answer)


class _Answer:
    """What one attempt brought."""

    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        self.logprobs: list[TokenLogprob] = []
        self.reason: FinishReason = "error"
        self.usage = Usage()

    def is_told_by_logprobs(self, text: str) -> bool:
        return b"".join(each.token for each in self.logprobs) == text.encode()

    def note(self, event: Event) -> None:
        if isinstance(event, Chunk):
            self.text += event.text
            self.reasoning += event.reasoning
            self.logprobs += event.logprobs
        elif isinstance(event, Finished):
            self.reason, self.usage = event.reason, event.usage


class _Judged(msgspec.Struct):
    """An answer as data, with the judgement on it. `is_mended`: it is not what was written."""

    value: Any = None
    text: str = ""
    is_json: bool = False
    is_mended: bool = False
    violations: list[Violation] = []
    reason: str = "there was no answer"

    @property
    def is_valid(self) -> bool:
        return self.is_json and not self.violations

    def is_better_than(self, other: _Judged) -> bool:
        if self.is_json != other.is_json or not self.is_json:
            return self.is_json or not other.is_json
        return len(self.violations) <= len(other.violations)


def _judge(text: str, validator: Validator) -> _Judged:
    """The value that a text stands for: as written if it can be, mended if that helps."""
    try:
        value = loads(text)
    except NotJson as exc:
        best = _Judged(reason=str(exc))
    else:
        best = _judge_value(value, validator, is_mended=False)
        if not best.is_mended and not repeats_keys(text):
            best.text = text
        if best.is_valid:
            return best
    for value in _candidates(text):
        judged = _judge_value(value, validator, is_mended=True)
        if judged.is_better_than(best):
            best = judged
    return best


def _candidates(text: str) -> list[Json]:
    found = []
    for value in candidates(text):
        try:
            found.append(loads(dumps(value)))  # what cannot be written as JSON was none
        except (NotJson, ValueError):
            continue
    return found


def _judge_value(value: Json, validator: Validator, *, is_mended: bool) -> _Judged:
    for _ in range(MAX_MENDS):
        violations = validator.violations(value)
        mended = next((fixed for each in violations if (fixed := _without_repetition(value, each)) is not None), None)
        if mended is None or mended == value:
            break
        value, is_mended = mended, True
    return _Judged(value=value, text=dumps(value), is_json=True, is_mended=is_mended, violations=violations)


def _without_repetition(value: Json, violation: Violation) -> Json | None:
    """Drop repeated items where `uniqueItems` asks for it: the one repair that invents nothing."""
    if not violation.schema_path.endswith("/uniqueItems"):
        return None
    copy = json.loads(json.dumps(value))
    items = copy
    for step in violation.path.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        items = items[int(step)] if isinstance(items, list) else items[step]
    kept: dict[str, Json] = {}
    for item in items:
        kept.setdefault(json.dumps(item, sort_keys=True), item)
    items[:] = kept.values()
    return copy


def _result(
    judged: _Judged,
    answer: _Answer,
    schema: CompiledSchema,
    usage: Usage,
    number: int,
    *,
    is_constrained: bool,
    source: str,
) -> StructuredResult:
    unenforced = schema.unenforced if is_constrained else (EVERYTHING,)
    guarantee: Guarantee = "validated" if unenforced else "constrained"
    if judged.is_mended or number > 1:
        guarantee = "repaired"
    was_cut = answer.reason not in ("stop", "closed")
    return StructuredResult(
        data=judged.value,
        text=judged.text,
        reasoning=answer.reasoning,
        logprobs=tuple(answer.logprobs) if answer.is_told_by_logprobs(judged.text) else (),
        guarantee=guarantee,
        unenforced=unenforced,
        attempts=number,
        fields={} if judged.is_mended else fields(answer.text, answer.logprobs, judged.value, source),
        usage=usage,
        finish_reason="closed" if was_cut else answer.reason,
    )


def _failure(best: _Judged, answer: _Answer) -> StructuredError:
    if answer.reason == "length":
        return StructuredError(
            "The answer reached max_tokens before it was complete, so there is no valid JSON. Raise max_tokens, "
            "or ask for less.",
            "truncated",
            candidate=best.value,
            violations=best.violations,
        )
    if best.is_json:
        where = best.violations[0]
        wrong = f"{where.message} (at {where.path or 'the top'})"
    else:
        wrong = f"the answer is not JSON: {best.reason}"
    return StructuredError(
        f"No attempt gave data that satisfies the schema; the closest one fails because {wrong}. "
        "Make the schema or the prompt clearer, or choose a larger model.",
        "invalid_after_retries",
        candidate=best.value,
        violations=best.violations,
    )


def refused(error: SchemaRefused) -> StructuredError:
    """A schema that cannot be used, as an error of the same kind as the others."""
    return StructuredError(str(error), error.kind)


# What the model is told


def instruct(messages: tuple[Message, ...], schema_text: str, about: str = "") -> tuple[Message, ...]:
    """The conversation with the schema in its system message: a constraint alone says too little."""
    told = f"Answer with JSON only, by this JSON Schema:\n{sketch(schema_text)}"
    if about:
        told = f"{about}\n{told}"
    if messages and messages[0].role == "system":
        return (Message("system", f"{messages[0].content}\n\n{told}"), *messages[1:])
    return (Message("system", told), *messages)


def sketch(schema_text: str) -> str:
    """The schema without what only describes it, if it is long; cut if it is still too long."""
    if len(schema_text) <= MAX_SKETCH:
        return schema_text
    text = json.dumps(_bare(json.loads(schema_text)), ensure_ascii=False, separators=(",", ":"))
    return text if len(text) <= MAX_SKETCH else text[:MAX_SKETCH] + " …"


def _bare(schema: Json) -> Json:
    if isinstance(schema, list):
        return [_bare(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    texts = {"title", "description"}
    return {
        key: _bare(value)
        for key, value in schema.items()
        if key not in ANNOTATIONS and not (key in texts and isinstance(value, str))
    }


def _corrected(messages: tuple[Message, ...], answer: str, judged: _Judged) -> tuple[Message, ...]:
    """The conversation with the failed answer and what is wrong with it."""
    if judged.is_json:
        wrong = "\n".join(f"- {each.path or 'the top'}: {each.message}" for each in judged.violations)
    else:
        wrong = f"- it is not JSON: {judged.reason}"
    return (
        *messages,
        Message("assistant", answer[:MAX_SKETCH]),
        Message("user", f"This JSON does not satisfy the schema:\n{wrong}\nAnswer again with corrected JSON only."),
    )


def _with_other_seed(request: ChatRequest) -> ChatRequest:
    """Another try with the same seed at temperature 0 would only repeat itself."""
    params = request.params
    seed = None if params.seed is None else (params.seed + 1) % (1 << 31)
    params = msgspec.structs.replace(params, seed=seed, temperature=max(params.temperature, 0.7))
    return msgspec.structs.replace(request, params=params, prefix="", reasoning="")


def _sum(a: Usage, b: Usage) -> Usage:
    """The account of all attempts together; queue and first token are those of the first."""
    if not (a.prompt_tokens or a.completion_tokens):
        return b
    return msgspec.structs.replace(
        a,
        prompt_tokens=a.prompt_tokens + b.prompt_tokens,
        reused_tokens=a.reused_tokens + b.reused_tokens,
        completion_tokens=a.completion_tokens + b.completion_tokens,
        duration_s=a.duration_s + b.duration_s,
    )


# What the reader should check


def fields(text: str, logprobs: Sequence[TokenLogprob], value: Json, source: str) -> dict[str, FieldReport]:
    """For each leaf of the document, by pointer, how probable its tokens were and where `source` says it."""
    try:
        spans = read(text, len(text) - len(text.lstrip())).spans
    except NotJson:
        return {}
    edges = _edges(logprobs)
    lowered = source.lower()
    reports = {}
    for path, leaf in _leaves(value, ""):
        if path in spans:
            reports[path] = FieldReport(_probability(edges, *_in_bytes(text, spans[path])), _found(lowered, leaf))
    return reports


def _leaves(value: Json, path: str) -> list[tuple[str, Json]]:
    if isinstance(value, dict):
        return [leaf for key, each in value.items() for leaf in _leaves(each, pointer(path, key))]
    if isinstance(value, list):
        return [leaf for at, each in enumerate(value) for leaf in _leaves(each, pointer(path, at))]
    return [(path, value)]


def _edges(logprobs: Sequence[TokenLogprob]) -> list[tuple[int, int, float]]:
    edges, at = [], 0
    for each in logprobs:
        edges.append((at, at + len(each.token), each.logprob))
        at += len(each.token)
    return edges


def _in_bytes(text: str, span: tuple[int, int]) -> tuple[int, int]:
    start = len(text[: span[0]].encode())
    return start, start + len(text[span[0] : span[1]].encode())


def _probability(edges: list[tuple[int, int, float]], start: int, end: int) -> float | None:
    """Of all tokens that make the value together. A text of many words could nearly always be worded otherwise."""
    parts = [logprob for first, last, logprob in edges if first < end and last > start]
    return math.exp(sum(parts)) if 0 < len(parts) <= MAX_JUDGED else None


def _found(source: str, leaf: Json) -> tuple[int, int] | None:
    if isinstance(leaf, bool) or leaf is None or leaf == "" or not source:
        return None
    needle = (leaf if isinstance(leaf, str) else dumps(leaf)).lower()
    at = source.find(needle)
    return None if at < 0 else (at, at + len(needle))
