"""Two texts side by side, line by line. Knows nothing of pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Literal

MAX_LINES = 4_000  # of a text that are compared one by one; the time grows with their square


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the older and of the newer text, each with its number; None where there is none."""

    kind: Literal["same", "changed", "left_out"]
    before: tuple[int, str] | None = None
    after: tuple[int, str] | None = None


def side_by_side(before: str, after: str, context: int = 3) -> Iterator[Line]:
    """The changed lines, and `context` lines around; what is left out between is one line of its own."""
    old, new = before.split("\n"), after.split("\n")
    if max(len(old), len(new)) > MAX_LINES:
        yield from _pair(old, new, range(len(old)), range(len(new)))
        return
    end = 0
    for group in SequenceMatcher(None, old, new, autojunk=False).get_grouped_opcodes(context):
        if group[0][1] > end:
            yield Line("left_out")
        for tag, *bounds in group:
            rows = range(bounds[0], bounds[1]), range(bounds[2], bounds[3])
            yield from _pair(old, new, *rows, is_same=tag == "equal")
        end = group[-1][2]
    if end < len(old):
        yield Line("left_out")


def _pair(old: list[str], new: list[str], left: range, right: range, *, is_same: bool = False) -> Iterator[Line]:
    for at, to in zip_longest(left, right):
        before = (at + 1, old[at]) if at is not None else None
        after = (to + 1, new[to]) if to is not None else None
        yield Line("same" if is_same else "changed", before, after)
