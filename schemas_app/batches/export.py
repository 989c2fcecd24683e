"""A batch as a file to download, row by row: JSONL as it is, CSV with the values in columns of their own."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from localllm.gateway import database
from schemas_app.batches.models import Batch, BatchRow

BOM = "\ufeff"  # without it Excel takes UTF-8 for Latin-1
OWN_COLUMNS = ("row", "input", "guarantee", "error")
FORMULA = re.compile(r"[=+\-@\t\r]")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


async def jsonl(batch: Batch) -> AsyncGenerator[str]:
    """{row, input, output, guarantee, error} per line; `output` is null where there is none."""
    async for rows in _chunks(batch):
        yield "".join(_json_line(row) for row in rows)


async def csv_file(batch: Batch) -> AsyncGenerator[str]:
    """A column for each value that occurs anywhere, named by its path: `output.address.city`."""
    columns: dict[str, None] = {}
    async for rows in _chunks(batch):
        for row in rows:
            columns |= dict.fromkeys(_values(row))
    yield BOM + _csv_lines([[*OWN_COLUMNS, *columns]])
    async for rows in _chunks(batch):
        yield _csv_lines(
            [row.number, row.input, row.guarantee, row.error, *map(_values(row).get, columns)] for row in rows
        )


async def _chunks(batch: Batch) -> AsyncGenerator[list[BatchRow]]:
    number = 0
    while rows := await database.read(batch.rows_after, number):
        yield rows
        number = rows[-1].number


def _json_line(row: BatchRow) -> str:
    output = json.loads(row.output) if row.output else None
    line = {"row": row.number, "input": row.input, "output": output, "guarantee": row.guarantee, "error": row.error}
    return json.dumps(line, ensure_ascii=False) + "\n"


def _csv_lines(lines: Iterable[Iterable[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file).writerows([_cell(value) for value in line] for line in lines)
    return file.getvalue()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula is marked as text; numbers stay numbers."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def _values(row: BatchRow) -> dict[str, Any]:
    return dict(_leaves(json.loads(row.output), "output")) if row.output else {}


def _leaves(value: Any, path: str) -> Iterable[tuple[str, Any]]:
    """Objects become columns; lists stay JSON, or their length would make the columns."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _leaves(each, f"{path}.{key.replace('.', chr(92) + '.')}")
    else:
        yield path, json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
