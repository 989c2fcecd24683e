"""Passages of documents: cut on paragraphs and sentences, and chosen for a question by BM25.

The index is SQLite's FTS5 in memory: made for one question and forgotten.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing

import msgspec

from localllm.inference.chunking import sentences

TARGET_CHARS = 700  # of a passage; shorter ones are joined up to this
MAX_CHARS = 1_200
MAX_WORDS = 60  # of a question
PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*")
WORD = re.compile(r"\w+")


class Passage(msgspec.Struct, frozen=True):
    """Characters `start` to `end` of one of several documents."""

    document: int
    start: int
    end: int


def choose(documents: Sequence[str], question: str, max_chars: int) -> list[Passage]:
    """What says most about `question`, in the order of reading, `max_chars` together at most.

    Where no word of the question occurs, the passages at the beginning. With little room they are cut smaller.
    """
    passages = [
        Passage(number, start, end) for number, text in enumerate(documents) for start, end in spans(text, max_chars)
    ]
    texts = [documents[each.document][each.start : each.end] for each in passages]
    chosen: list[int] = []
    num_chars = 0
    for place in _ranked(texts, question) or range(len(texts)):
        num_chars += len(texts[place])
        if num_chars > max_chars and chosen:
            break
        chosen.append(place)
    return [passages[place] for place in sorted(chosen)]


def _ranked(texts: Sequence[str], question: str) -> list[int]:
    """Places of the texts in which a word of the question occurs, the best first."""
    words = list(dict.fromkeys(WORD.findall(question)))[:MAX_WORDS]
    if not words:
        return []
    with closing(sqlite3.connect(":memory:")) as index:
        index.execute("CREATE VIRTUAL TABLE passage USING fts5 (text, tokenize='porter unicode61 remove_diacritics 2')")
        index.executemany("INSERT INTO passage (rowid, text) VALUES (?, ?)", enumerate(texts))
        match = " OR ".join(f'"{word}"' for word in words)
        rows = index.execute("SELECT rowid FROM passage WHERE passage MATCH ? ORDER BY rank, rowid", (match,))
        return [place for (place,) in rows]


def spans(text: str, most_chars: int = MAX_CHARS) -> list[tuple[int, int]]:
    """Where the passages of `text` begin and end, in order. Between them there is nothing but white space."""
    joined: list[tuple[int, int]] = []
    for start, end in _units(text, min(most_chars, MAX_CHARS)):
        if not text[start:end].strip():
            continue
        if joined and end - joined[-1][0] <= min(most_chars, TARGET_CHARS):
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _units(text: str, most_chars: int) -> Iterator[tuple[int, int]]:
    """Paragraphs; of a long one its sentences; of a long sentence pieces between words."""
    for start, end in _paragraphs(text):
        if end - start <= most_chars:
            yield start, end
            continue
        for sentence in sentences(text[start:end]):
            yield from _pieces(text, start, start + len(sentence.rstrip()), most_chars)
            start += len(sentence)


def _paragraphs(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for match in PARAGRAPH_END.finditer(text):
        yield start, start + len(text[start : match.start()].rstrip())
        start = match.end()
    yield start, start + len(text[start:].rstrip())


def _pieces(text: str, start: int, end: int, most_chars: int) -> Iterator[tuple[int, int]]:
    while end - start > most_chars:
        blank = text.rfind(" ", start + most_chars // 2, start + most_chars)
        cut = blank if blank > 0 else start + most_chars
        yield start, cut
        start = cut + (blank > 0)
    yield start, end
