"""Key facts taken out of a conversation by plain rules, word for word: names, figures with the words around them, and
what the user asked. For models that are too small to be asked for a summary. Knows no engine but its counter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from localllm.inference import chunking
from localllm.inference.chunking import Counter
from localllm.inference.compression import MAX_FACT_CHARS, MAX_FACTS, Compressed, Fact, KeyFacts, Span, fit
from localllm.inference.types import Message

AROUND = 3  # words before and after a figure
EDGES = ".,;:!?…()[]{}\"'“”„‘’*_`#-–—"


async def quote(
    turns: Sequence[Message], counter: Counter, *, previous: KeyFacts | None = None, budget_tokens: int
) -> Compressed:
    """As `compression.compress`, and with the same promises, but without a model. Newer facts stand first."""
    known = previous or KeyFacts()
    span = await Span.of(turns, known, budget_tokens, counter)
    facts = key_facts(turns).with_carried(known).with_rest(known)
    shortened = await fit(facts, budget_tokens, span.budget, counter) if facts.all() else facts
    return msgspec.structs.replace(await span.compressed(shortened, counter), is_quoted=True)


def key_facts(turns: Sequence[Message]) -> KeyFacts:
    """The newest first, at most MAX_FACTS of each kind."""
    newest = [
        (turn.role, sentence.split())
        for turn in reversed(turns)
        for sentence in chunking.sentences(turn.content)
        if sentence.strip()
    ]
    return KeyFacts(
        names=_facts(name for _, words in newest for name in _names(words)),
        numbers=_facts(phrase for _, words in newest for phrase in _figures(words)),
        open_questions=_facts(" ".join(words) for role, words in newest if role == "user" and words[-1].endswith("?")),
    )


def _facts(texts: Iterator[str]) -> tuple[Fact, ...]:
    found = {text.casefold(): text for text in texts if 1 < len(text) <= MAX_FACT_CHARS}
    return tuple(Fact(text) for text in list(found.values())[:MAX_FACTS])


def _names(words: list[str]) -> Iterator[str]:
    """Runs of capitalised words, but for the one that begins the sentence."""
    run: list[str] = []
    for word in [*words[1:], ""]:
        name = word.strip(EDGES)
        if len(name) > 1 and name[0].isupper() and name.isalpha():
            run.append(name)
        if run and (name != run[-1] or word[-1:] in EDGES):
            yield " ".join(run)
            run = []


def _figures(words: list[str]) -> Iterator[str]:
    """Each figure with the words around it; figures that stand close together as one."""
    places = [at for at, word in enumerate(words) if any(char.isdigit() for char in word)]
    while places:
        first = last = places.pop(0)
        while places and places[0] - last <= AROUND:
            last = places.pop(0)
        yield " ".join(words[max(0, first - AROUND) : last + AROUND + 1]).strip(EDGES)
