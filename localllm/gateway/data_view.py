"""JSON as HTML that people read: labels with values, tables, lists; and what vouches for it, in words.

Takes any text, finished or still being written, and lets nothing of it act: all is escaped, no link is
active, the size is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from itertools import islice
from typing import Any, TypeVar

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from localllm.inference.json_schema.document import Json, pointer
from localllm.inference.json_schema.reading import NotJson, dumps, loads, read
from localllm.inference.structured import FieldReport

T = TypeVar("T")

CHECK_BELOW = 0.6  # a value less probable than this is to be checked: another one was nearly as likely
MAX_UNFINISHED = 64_000  # characters; reading what is cut off takes quadratic time
MAX_TEXT = 20_000  # characters of one value
MAX_ITEMS = 200  # of one object or array
MAX_VALUES = 2_000  # of the document
MAX_DEPTH = 12
MAX_COLUMNS = 12
NAME = re.compile(r"[\w-]+")
WORDS = re.compile(r"[_-]+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
NOTHING = SafeString()


def render(text: str, reports: Mapping[str, FieldReport] | None = None) -> SafeString:
    """`text` as HTML, as far as it is written; what is no JSON is shown as it is.

    Each value carries its JSON pointer in `data-path`. With `reports`, it carries `data-probability` too, one
    that the model was not sure of has the class `is-unsure`, and one that the input says has `data-span`,
    "start end" in characters.
    """
    value, is_whole = _parse(text)
    body = _as_written(text) if value is None and not is_whole else _Writer(reports or {}, is_whole).value(value, "", 0)
    html = format_html('<div class="data-view">{}</div>', body)
    return SafeString(html.encode("utf-8", "replace").decode())  # half of a surrogate pair cannot be sent


def vouched(account: Mapping[str, Any]) -> str:
    """What vouches for a result, in words. `account`: the fields of a StructuredResult by name."""
    match account["guarantee"]:
        case "constrained":
            words = "Every field was enforced while it was written, then checked."
        case "validated":
            keywords = sorted({note["keyword"] for note in account["unenforced"]})
            words = f"Checked after it was written; only then: {', '.join(keywords).replace('*', 'everything')}."
        case _:
            num_attempts = account["attempts"]
            how = f"Valid at attempt {num_attempts}" if num_attempts > 1 else "Mended after it was written"
            words = f"{how}, then checked."
    if account["finish_reason"] == "closed":
        words += " The length limit ended it early: something may be missing."
    return words


def is_unsure(report: FieldReport) -> bool:
    return report.probability is not None and report.probability < CHECK_BELOW


def label(key: str) -> str:
    """`overallScore` and `overall_score` as people write it: Overall score. Other keys stay as they are."""
    if not NAME.fullmatch(key):
        return key or "(no name)"
    words = [word if word.isupper() and len(word) > 1 else word.lower() for word in WORDS.split(key) if word]
    text = " ".join(words) or key
    return text[:1].upper() + text[1:]


def _parse(text: str) -> tuple[Json, bool]:
    """The value, and whether it is finished; None and False for what cannot be read."""
    try:
        return loads(text), True
    except NotJson:
        pass
    try:
        return read(text[:MAX_UNFINISHED], len(text) - len(text.lstrip())).value, False
    except NotJson:
        return None, False


def _as_written(text: str) -> SafeString:
    return format_html("<pre>{}</pre>", _cut(text)) if text.strip() else NOTHING


def _cut(text: str) -> str:
    rest = len(text) - MAX_TEXT
    return text if rest <= 0 else f"{text[:MAX_TEXT]}… and {rest:,} more characters"


class _Writer:
    def __init__(self, reports: Mapping[str, FieldReport], is_whole: bool) -> None:
        self._reports = reports
        self._is_whole = is_whole
        self._num_left = MAX_VALUES

    def value(self, value: Json, path: str, depth: int) -> SafeString:
        if not isinstance(value, dict | list):
            return self._leaf(value, path)
        if not value:
            return self._nothing("empty")
        if depth >= MAX_DEPTH:
            return _as_written(dumps(value))
        if isinstance(value, dict):
            return self._object(value, path, depth)
        columns = _columns(value)
        return self._table(value, columns, path) if columns else self._list(value, path, depth)

    def _object(self, value: dict[str, Json], path: str, depth: int) -> SafeString:
        shown, rest = self._first(value.items())
        rows = [(label(key), self.value(each, pointer(path, key), depth + 1)) for key, each in shown]
        return format_html("<dl>{}</dl>{}", format_html_join("", "<div><dt>{}</dt><dd>{}</dd></div>", rows), rest)

    def _list(self, value: list[Json], path: str, depth: int) -> SafeString:
        shown, rest = self._first(value)
        items = [(self.value(each, pointer(path, at), depth + 1),) for at, each in enumerate(shown)]
        return format_html("<ul>{}</ul>{}", format_html_join("", "<li>{}</li>", items), rest)

    def _table(self, value: list[dict[str, Json]], columns: list[str], path: str) -> SafeString:
        shown, rest = self._first(value)
        head = format_html_join("", '<th scope="col">{}</th>', ((label(column),) for column in columns))
        rows = [(self._cells(row, columns, pointer(path, at)),) for at, row in enumerate(shown)]
        return format_html(
            '<div class="table" tabindex="0"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>{}',
            head, format_html_join("", "<tr>{}</tr>", rows), rest,
        )  # fmt: skip

    def _cells(self, row: dict[str, Json], columns: list[str], path: str) -> SafeString:
        cells = [self._leaf(row[name], pointer(path, name)) if name in row else NOTHING for name in columns]
        return format_html_join("", "<td>{}</td>", ((cell,) for cell in cells))

    def _leaf(self, value: Json, path: str) -> SafeString:
        kind, shown = self._shown(value)
        about = NOTHING
        if report := self._reports.get(path):
            about = _about(report)
            kind += " is-unsure" if is_unsure(report) else ""
        return format_html('<span class="value {}" data-path="{}"{} dir="auto">{}</span>', kind, path, about, shown)

    def _shown(self, value: Json) -> tuple[str, str | SafeString]:
        """The kind of a single value, and what it looks like."""
        if value is None:
            return "is-null", "none"
        if isinstance(value, bool):
            return "is-boolean", "yes" if value else "no"
        if isinstance(value, str):
            return "is-text", _cut(value) or self._nothing("empty")
        return "is-number", dumps(value)

    def _nothing(self, word: str) -> SafeString:
        """What is empty may still be filled, as long as the document is not finished."""
        return format_html('<span class="muted">{}</span>', word) if self._is_whole else NOTHING

    def _first(self, items: Collection[T]) -> tuple[list[T], SafeString]:
        """As many as may be shown, and the count of the others."""
        num_shown = min(len(items), MAX_ITEMS, self._num_left)
        self._num_left -= num_shown
        rest = len(items) - num_shown
        more = format_html('<p class="muted">and {} more</p>', f"{rest:,}") if rest else NOTHING
        return list(islice(items, num_shown)), more


def _about(report: FieldReport) -> SafeString:
    """Attributes that say how sure the model was, and where the input says the value."""
    probability = unsure = span = NOTHING
    if report.probability is not None:
        probability = format_html(' data-probability="{}"', round(report.probability, 3))
    if is_unsure(report):
        unsure = format_html(' title="check this ({} %)"', round((report.probability or 0) * 100))
    if report.source:
        span = format_html(' data-span="{} {}"', *report.source)
    return format_html("{}{}{}", probability, unsure, span)


def _columns(rows: list[Json]) -> list[str]:
    """The columns of a table, if all items are objects of single values and it is not too wide."""
    columns: dict[str, None] = {}
    for row in rows:
        if not isinstance(row, dict) or any(isinstance(each, dict | list) for each in row.values()):
            return []
        columns |= dict.fromkeys(row)
    return list(columns) if len(columns) <= MAX_COLUMNS else []
