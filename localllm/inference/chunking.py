"""Texts cut at the ends of sentences, by the exact token counts of a model. Nothing is lost between two chunks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from localllm.inference.errors import ContextOverflow
from localllm.inference.types import Message

CUT = " […]"  # stands where something was left out
COUNTED_AT_ONCE = 64_000  # characters; a longer call would keep the tokenizer from other requests

_ENDS = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])|\n+")


class Counter(Protocol):
    """Counts as one model does."""

    async def texts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by itself."""
        ...

    async def messages(self, messages: tuple[Message, ...]) -> int:
        """Tokens of a prompt, chat template included."""
        ...


def sentences(text: str) -> list[str]:
    """`text` in sentences or lines, each with the white space after it; joined they are `text`."""
    ends = [match.end() for match in _ENDS.finditer(text)]
    pieces = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    return [piece for piece in pieces if piece]


async def chunks(text: str, max_tokens: int, counter: Counter) -> list[str]:
    """`text` in parts of at most `max_tokens` each, cut between sentences, or words where one is too long."""
    if max_tokens < 1:
        raise ContextOverflow("The context of this model is too small to read any of the text. Choose a larger one.")
    pieces = await _small_pieces(sentences(text), max_tokens, counter)
    parts: list[str] = []
    begun, size = "", 0
    for piece, count in pieces:
        if begun and size + count > max_tokens:
            parts.append(begun)
            begun, size = "", 0
        begun, size = begun + piece, size + count
    parts.append(begun)
    return [each for part in parts for each in await _proven(part, max_tokens, counter)]


async def shorten(text: str, max_tokens: int, counter: Counter) -> str:
    """`text` if it has no more than `max_tokens`; else as much of its beginning as fits, and a sign that it is cut."""
    if await count(text, counter) <= max_tokens:
        return text
    (sign,) = await counter.texts([CUT])
    room = max_tokens - sign
    while room > 0:
        kept = (await chunks(text, room, counter))[0].rstrip() + CUT
        excess = await count(kept, counter) - max_tokens
        if excess <= 0:
            return kept
        room -= excess
    return ""


async def count(text: str, counter: Counter) -> int:
    """Exact tokens of one text. A long one is counted in parts, whose sum may be a few tokens more."""
    slices = [text[at : at + COUNTED_AT_ONCE] for at in range(0, len(text), COUNTED_AT_ONCE)]
    return sum([(await counter.texts([each]))[0] for each in slices])


async def _small_pieces(pieces: list[str], max_tokens: int, counter: Counter) -> list[tuple[str, int]]:
    """The pieces with their counts; one that is too long is halved until its parts fit."""
    small: list[tuple[str, int]] = []
    for piece, num_tokens in zip(pieces, await counts(pieces, counter), strict=True):
        if num_tokens <= max_tokens or len(piece) == 1:
            small.append((piece, num_tokens))
        else:
            small += await _small_pieces(_halves(piece), max_tokens, counter)
    return small


async def counts(pieces: Sequence[str], counter: Counter) -> list[int]:
    """Exact tokens of each, asked for in calls of a bounded size."""
    batches: dict[int, list[str]] = {}
    for piece, end in zip(pieces, accumulate(map(len, pieces)), strict=True):
        batches.setdefault(end // COUNTED_AT_ONCE, []).append(piece)
    found: list[int] = []
    for batch in batches.values():
        if len(batch) == 1:
            found.append(await count(batch[0], counter))
        else:
            found += await counter.texts(batch)
    return found


def _halves(piece: str) -> list[str]:
    """Cut at the white space nearest to the middle, or in the middle."""
    middle = len(piece) // 2
    before, after = piece.rfind(" ", 0, middle) + 1, piece.find(" ", middle) + 1
    candidates = [at for at in (before, after) if 0 < at < len(piece)]
    at = min(candidates, key=lambda at: abs(at - middle), default=middle)
    return [piece[:at], piece[at:]]


async def _proven(part: str, max_tokens: int, counter: Counter) -> list[str]:
    """Joined pieces may count more than one by one: such a part is halved."""
    if len(part) == 1 or await count(part, counter) <= max_tokens:
        return [part] if part else []
    return [each for half in _halves(part) for each in await _proven(half, max_tokens, counter)]
