"""Older turns of a conversation as key facts, within a budget of tokens that is never exceeded.

The model fills in a schema, so that every fact stands in its list. Pinned facts are carried on word for word, by
this module and not by the model. `ask` is anything that streams events for a request, and may write nonsense.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import cache

import msgspec

from localllm.inference import chunking
from localllm.inference.chunking import Counter
from localllm.inference.errors import ContextOverflow, ProviderError
from localllm.inference.json_schema.grammar import CompiledSchema, compile_schema
from localllm.inference.structured import Ask, StructuredResult, structured
from localllm.inference.summarise import MIN_ROOM_TOKENS, SLACK_TOKENS, Progress
from localllm.inference.types import ChatRequest, Message, ResponseFormat

Instruct = Callable[[str, str, int], tuple[Message, ...]]  # (summary so far, turns, max_tokens) -> what is asked

LISTS = {
    "names": "Names",
    "numbers": "Numbers and dates",
    "decisions": "Decisions",
    "open_questions": "Open questions",
}
TITLES = {"narrative": "What was said", **LISTS}
MAX_FACTS = 12  # of a list
MAX_FACT_CHARS = 240
MAX_NARRATIVE_CHARS = 1200
MIN_BUDGET_TOKENS = 24
SHAPE = (
    "Answer as JSON: names, numbers, decisions and open_questions are lists of short facts, the most important first; "
    "narrative is what else matters, in a few sentences."
)
_WORD = re.compile(r"[^\W_]{3,}")
_NUMBER = re.compile(r"\d+(?:[.,: ]\d+)*")
SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System"}


class CompressionError(ProviderError):
    """These turns cannot be made shorter; they stay as they are."""

    def __init__(self, message: str) -> None:
        super().__init__(message, permanent=True)


class Fact(msgspec.Struct, frozen=True):
    """One line of a summary. A pinned one is in every later summary, word for word."""

    text: str
    is_pinned: bool = False


class KeyFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a summary holds; the most important first in each list."""

    narrative: tuple[Fact, ...] = ()
    names: tuple[Fact, ...] = ()
    numbers: tuple[Fact, ...] = ()
    decisions: tuple[Fact, ...] = ()
    open_questions: tuple[Fact, ...] = ()

    @property
    def text(self) -> str:
        """As the model reads it."""
        lines = [" ".join(fact.text for fact in self.narrative)]
        for name, title in LISTS.items():
            lines.append(f"{title}: " + "; ".join(fact.text for fact in getattr(self, name)))
        return "\n".join(line for line in lines if line and not line.endswith(": "))

    def all(self) -> list[Fact]:
        return [fact for name in self.__struct_fields__ for fact in getattr(self, name)]

    def carried(self) -> KeyFacts:
        """What a later summary has to take over."""
        return self._each(lambda facts: tuple(fact for fact in facts if fact.is_pinned))

    def with_carried(self, earlier: KeyFacts) -> KeyFacts:
        """With the pinned facts of `earlier` in front, and none of them twice."""
        carried = earlier.carried()
        known = {fact.text.casefold() for fact in carried.all()}
        own = self._each(lambda facts: tuple(fact for fact in facts if fact.text.casefold() not in known))
        return KeyFacts(**{name: getattr(carried, name) + getattr(own, name) for name in self.__struct_fields__})

    def with_rest(self, earlier: KeyFacts) -> KeyFacts:
        """With the facts of `earlier` behind its own, and none of them twice."""
        known = {fact.text.casefold() for fact in self.all()}
        rest = earlier._each(lambda facts: tuple(fact for fact in facts if fact.text.casefold() not in known))
        return KeyFacts(**{name: getattr(self, name) + getattr(rest, name) for name in self.__struct_fields__})

    def edited(self, lines: dict[str, list[str]]) -> KeyFacts:
        """As somebody rewrote it: lines by list. What is new or was changed is pinned from now on."""
        known = {(name, fact.text): fact for name in self.__struct_fields__ for fact in getattr(self, name)}
        return KeyFacts(
            **{
                name: tuple(known.get((name, line)) or Fact(line, is_pinned=True) for line in _lines(written))
                for name, written in lines.items()
            }
        )

    def with_pin(self, text: str, *, is_pinned: bool) -> KeyFacts:
        return self._each(lambda facts: tuple(Fact(f.text, is_pinned) if f.text == text else f for f in facts))

    def shorter(self) -> KeyFacts | None:
        """Without its least important fact, the last of the longest list; None when only pinned ones are left."""
        loose = {name: [f for f in getattr(self, name) if not f.is_pinned] for name in self.__struct_fields__}
        name = max(loose, key=lambda name: sum(len(fact.text) for fact in loose[name]))
        if not loose[name]:
            return None
        dropped = loose[name][-1]
        kept = tuple(fact for fact in getattr(self, name) if fact is not dropped)
        return msgspec.structs.replace(self, **{name: kept})

    def _each(self, change: Callable[[tuple[Fact, ...]], tuple[Fact, ...]]) -> KeyFacts:
        return KeyFacts(**{name: change(getattr(self, name)) for name in self.__struct_fields__})


class Compressed(msgspec.Struct, frozen=True, kw_only=True):
    """A summary of turns: `num_tokens` of text in place of `num_tokens_before`. `is_quoted`: no model wrote it."""

    facts: KeyFacts
    num_tokens: int
    num_tokens_before: int
    is_quoted: bool = False


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """What a summary is to stand for, and how long it may get."""

    transcript: str
    num_tokens: int
    budget: int

    @classmethod
    async def of(cls, turns: Sequence[Message], previous: KeyFacts, budget_tokens: int, counter: Counter) -> Span:
        transcript = "\n\n".join(f"{SPEAKERS[turn.role]}: {turn.content}" for turn in turns)
        before = await chunking.count(transcript, counter) + await chunking.count(previous.text, counter)
        budget = min(budget_tokens, max(MIN_BUDGET_TOKENS, before // 2))
        return cls(transcript=transcript, num_tokens=before, budget=budget)

    async def compressed(self, facts: KeyFacts, counter: Counter) -> Compressed:
        """Raises CompressionError when `facts` say nothing, or are not shorter than what they stand for."""
        if not facts.all():
            raise CompressionError("Nothing was found to keep: the messages stay as they are.")
        num_tokens = await chunking.count(facts.text, counter)
        if num_tokens >= self.num_tokens:
            raise CompressionError(
                f"The summary has {num_tokens} tokens, and what it stands for {self.num_tokens}: "
                "the messages stay as they are."
            )
        return Compressed(facts=facts, num_tokens=num_tokens, num_tokens_before=self.num_tokens)


async def compress(
    ask: Ask,
    request: ChatRequest,
    turns: Sequence[Message],
    instruct: Instruct,
    counter: Counter,
    *,
    previous: KeyFacts | None = None,
    budget_tokens: int,
    window: int,
) -> AsyncGenerator[Progress | Compressed]:
    """Make `turns`, and the `previous` summary of those before them, one summary of at most `budget_tokens`.

    More turns than the window holds are read one part after the other. `request` gives sampling and owner. The
    last item is the summary. Raises CompressionError when it would not be shorter than what it stands for, or
    the pinned facts alone exceed the budget, and whatever `ask` raises.
    """
    facts = previous or KeyFacts()
    span = await Span.of(turns, facts, budget_tokens, counter)
    budget = span.budget
    answer = min(2 * budget + 64, window // 3)  # JSON takes more tokens than the text that is made of it
    room = window - answer - budget - SLACK_TOKENS - await counter.messages(_shaped(instruct("", "", budget)))
    if room < MIN_ROOM_TOKENS:
        raise ContextOverflow(
            f"A summary of {budget} tokens and its instructions leave no room for the conversation: the context of "
            f"this model holds {window}. Choose a model with a larger context."
        )
    parts = await chunking.chunks(span.transcript, room, counter)
    for number, part in enumerate(parts):
        yield Progress(number, len(parts))
        asked = _asking(request, _shaped(instruct(facts.text, part, budget)), answer)
        found = grounded(_parse(await _result(ask, asked)), f"{facts.text}\n{part}")
        facts = await fit(found.with_carried(facts), budget_tokens, budget, counter)
    yield await span.compressed(facts, counter)


def grounded(facts: KeyFacts, source: str) -> KeyFacts:
    """Its lists without what was never said in `source`: no word of it, or a figure of a name or number."""
    words, figures = set(_WORD.findall(source.casefold())), _figures(source)

    def is_said(name: str, fact: Fact) -> bool:
        own = _figures(fact.text)
        if name in ("names", "numbers") and not own <= figures:
            return False
        return bool(own & figures) or bool(words & set(_WORD.findall(fact.text.casefold())))

    said = {name: tuple(fact for fact in getattr(facts, name) if is_said(name, fact)) for name in LISTS}
    return msgspec.structs.replace(facts, **said)


def _figures(text: str) -> set[str]:
    """Runs of digits, and those that only separators part as one: 41,500 is 41, 500 and 41500."""
    return {run for number in _NUMBER.findall(text) for run in (*re.findall(r"\d+", number), re.sub(r"\D", "", number))}


async def fit(facts: KeyFacts, budget_tokens: int, wanted_tokens: int, counter: Counter) -> KeyFacts:
    """Drop the least important facts down to `wanted_tokens`; pinned ones may fill up to `budget_tokens`."""
    while (num_tokens := await chunking.count(facts.text, counter)) > wanted_tokens:
        fewer = facts.shorter()
        if fewer is None and num_tokens <= budget_tokens:
            return facts
        if fewer is None:
            raise CompressionError(
                f"The pinned facts alone have {num_tokens} tokens, and a summary may have {budget_tokens}. "
                "Unpin or shorten some of them."
            )
        if not fewer.all():  # one long sentence: better its beginning than nothing
            (last,) = facts.all()
            return KeyFacts(narrative=(Fact(await chunking.shorten(last.text, wanted_tokens, counter)),))
        facts = fewer
    return facts


def schema_text() -> str:
    """The JSON Schema of what the model writes. The lists come first, so that a talkative narrative costs none."""
    facts = {"type": "array", "maxItems": MAX_FACTS, "items": {"type": "string", "maxLength": MAX_FACT_CHARS}}
    narrative = {"type": "string", "minLength": 1, "maxLength": MAX_NARRATIVE_CHARS}
    properties = {**dict.fromkeys(LISTS, facts), "narrative": narrative}
    schema = {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip
    return json.dumps(schema)


def _shaped(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    *before, last = messages
    return (*before, Message(last.role, f"{last.content}\n\n{SHAPE}"))


@cache
def _schema() -> CompiledSchema:
    return compile_schema(schema_text())


def _asking(request: ChatRequest, messages: tuple[Message, ...], max_tokens: int) -> ChatRequest:
    schema = _schema()
    return msgspec.structs.replace(
        request,
        messages=messages,
        params=msgspec.structs.replace(request.params, max_tokens=max_tokens, clips_max_tokens=True),
        response_format=ResponseFormat(
            schema=schema.text, digest=schema.digest, grammar=schema.grammar, examples=schema.examples
        ),
    )


async def _result(ask: Ask, request: ChatRequest) -> StructuredResult:
    result: StructuredResult | None = None
    async with aclosing(structured(ask, request, _schema(), is_constrained=True)) as items:
        async for item in items:
            if isinstance(item, StructuredResult):
                result = item
    assert result is not None, "A structured answer ends with a result or an error."
    return result


def _parse(result: StructuredResult) -> KeyFacts:
    lists = {name: tuple(map(Fact, _lines(result.data[name]))) for name in LISTS}
    narrative = tuple(map(Fact, _lines(chunking.sentences(result.data["narrative"]))))
    return KeyFacts(narrative=narrative, **lists)


def _lines(written: Sequence[str]) -> list[str]:
    """Each on one line, none empty, none twice."""
    return list(dict.fromkeys(line for each in written if (line := " ".join(each.split()))))
