"""From what somebody pastes or uploads to inputs, one per row of a batch. Knows text and bytes; no rows.

Nothing is skipped or mended without a word: what cannot be read is an InputError that names the line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from localllm.inference.documents.extraction import decode

MAX_BYTES = 8 << 20  # of a file
MAX_ROWS = 10_000
MAX_CHARS = 100_000  # of one input
MAX_COLUMNS = 200

DELIMITERS = {"commas": ",", "semicolons": ";", "tabs": "\t", "bars": "|"}
SAMPLE = 50  # lines that are looked at to find out how a file is written
CONTROL = re.compile("[\x00-\x08\x0e-\x1f]")
NUMBER = re.compile(r"[-+]?[\d.,\s]+%?|")


class InputError(Exception):
    """It cannot be read as inputs; `str(exc)` is for the user."""


@dataclass(frozen=True, slots=True)
class Record:
    """A line of a file: as a whole, and by the name of its columns."""

    whole: str
    cells: dict[str, str]


@dataclass(frozen=True, slots=True)
class Table:
    """A file, read. `delimiter` is a word of DELIMITERS, and empty for JSONL."""

    columns: tuple[str, ...]
    records: tuple[Record, ...]
    encoding: str
    delimiter: str = ""
    has_header: bool = False

    def inputs(self, chosen: Sequence[str] = ()) -> list[str]:
        """One text per record: of the chosen columns, or the whole record."""
        columns = [name for name in self.columns if name in chosen]
        if not columns:
            return [record.whole for record in self.records]
        return [_text({name: record.cells.get(name, "") for name in columns}) for record in self.records]


def split(text: str, by: Literal["line", "block"]) -> list[str]:
    """Pasted text: an input per line, or per block between blank lines."""
    text = text.replace("\x00", "").replace("\r\n", "\n").replace("\r", "\n")
    return text.split("\n") if by == "line" else re.split(r"\n[ \t]*\n", text)


def checked(texts: Sequence[str]) -> list[str]:
    """The inputs that say something, if they are neither too few, too many, nor too long."""
    inputs = [text.strip() for text in texts if text.strip()]
    if not inputs:
        raise InputError("There is no input here. Paste some text, or choose a file that holds some.")
    if len(inputs) > MAX_ROWS:
        raise InputError(
            f"There are {len(inputs):,} inputs; a batch takes {MAX_ROWS:,} at most. Divide them into several batches."
        )
    for number, text in enumerate(inputs, 1):
        if len(text) > MAX_CHARS:
            raise InputError(
                f"Input {number} has {len(text):,} characters; {MAX_CHARS:,} at most are taken. Shorten or split it."
            )
    return inputs


def read(data: bytes, name: str, *, delimiter: str = "", has_header: bool | None = None) -> Table:
    """A CSV or JSONL file, by its name or by what it looks like. None and "" mean: find out."""
    if len(data) > MAX_BYTES:
        raise InputError(f"The file has {len(data):,} bytes; {MAX_BYTES:,} at most are taken. Divide it.")
    text, encoding = _decode(data)
    if name.lower().endswith((".jsonl", ".ndjson")) or text.lstrip().startswith("{"):
        return _jsonl(text, encoding)
    return _csv(text, encoding, delimiter, has_header)


def _decode(data: bytes) -> tuple[str, str]:
    if data.startswith(b"PK\x03\x04"):
        raise InputError("This is a spreadsheet or a ZIP file. Save the sheet as CSV, and upload that.")
    text, encoding = decode(data)
    if CONTROL.search(text):
        raise InputError(
            "The file is no text: it holds control characters, as binary files do. Save it as CSV or JSONL."
        )
    return text, encoding


# JSONL


def _jsonl(text: str, encoding: str) -> Table:
    records = [_record(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    columns = Counter(name for record in records for name in record.cells)
    return Table(tuple(list(columns)[:MAX_COLUMNS]), tuple(records), encoding)


def _record(line: str, number: int) -> Record:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as exc:
        raise InputError(
            f"Line {number} is not JSON ({exc.msg} at column {exc.colno}). In a JSONL file each line is one object."
        ) from None
    except RecursionError:
        raise InputError(f"Line {number} nests too deep. Flatten it.") from None
    if isinstance(value, dict):
        return Record(line.strip(), {name: _cell(each) for name, each in value.items()})
    return Record(_cell(value), {})


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


# CSV


def _csv(text: str, encoding: str, delimiter: str, has_header: bool | None) -> Table:
    delimiter = delimiter or _delimiter_of(text)
    rows = _rows(text, delimiter)
    if not rows:
        raise InputError("The file is empty. Choose one that holds some rows.")
    if has_header is None:
        has_header = _looks_like_header([cells for _, cells in rows])
    columns = _named(rows[0][1] if has_header else [""] * max(len(cells) for _, cells in rows))
    records = [_csv_record(columns, cells, line) for line, cells in rows[has_header:]]
    return Table(columns, tuple(records), encoding, delimiter, has_header)


def _rows(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Each with the line where it ends; blank lines are none."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=DELIMITERS[delimiter], strict=True)
    try:
        return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as exc:
        raise InputError(
            f"Line {reader.line_num} cannot be read as CSV ({exc}). A quote within a cell is written twice."
        ) from None


def _delimiter_of(text: str) -> str:
    """The one that divides the first lines into the same number of cells most often."""
    sample = io.StringIO("\n".join(text.splitlines()[:SAMPLE]))

    def regularity(delimiter: str) -> int:
        sample.seek(0)
        with suppress(csv.Error):  # said when the whole file is read
            widths = Counter(len(cells) for cells in csv.reader(sample, delimiter=DELIMITERS[delimiter]))
            return max((number for width, number in widths.items() if width > 1), default=0)
        return 0

    return max(DELIMITERS, key=regularity)


def _looks_like_header(rows: list[list[str]]) -> bool:
    """Names are short, and none is a number, a sentence, or there twice."""
    first = [cell.strip() for cell in rows[0]]
    return (
        len(rows) > 1
        and len(first) == len(set(first))
        and all(len(cell) <= 40 and not NUMBER.fullmatch(cell) and not cell.endswith((".", "!", "?")) for cell in first)
    )


def _named(names: Sequence[str]) -> tuple[str, ...]:
    """A name for each column, and no name twice."""
    if len(names) > MAX_COLUMNS:
        raise InputError(f"The file has {len(names):,} columns; {MAX_COLUMNS} at most are taken. Leave some out.")
    named: list[str] = []
    for number, name in enumerate(names, 1):
        name = name.strip() or f"Column {number}"
        named.append(name if name not in named else f"{name} ({number})")
    return tuple(named)


def _csv_record(columns: tuple[str, ...], cells: list[str], line: int) -> Record:
    if len(cells) > len(columns):
        raise InputError(
            f"Line {line} has {len(cells)} cells, but there are {len(columns)} columns. Put cells that hold the "
            "delimiter in quotes, or choose another delimiter."
        )
    named = dict(zip(columns, cells, strict=False))
    return Record(_text(named), named)


def _text(cells: dict[str, str]) -> str:
    """A single cell alone; of several, those that say something, with their names."""
    if len(cells) == 1:
        return next(iter(cells.values()))
    return "\n".join(f"{name}: {cell}" for name, cell in cells.items() if cell.strip())
