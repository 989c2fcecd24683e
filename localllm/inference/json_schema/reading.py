"""JSON as models write it: strict where it must be, tolerant where that loses nothing.

Finds the JSON in prose and fences, ends what was cut off, forgives trailing commas, and says that it did.
Knows nothing of schemas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from localllm.inference.json_schema.document import Json, pointer

MAX_DEPTH = 200
MAX_CANDIDATES = 32
MAX_CHARS = 2_000_000
WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
WORD = re.compile(r"[A-Za-z]+")
FENCE = re.compile(r"```[ \t]*(?:json|JSON|json5)?[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
SPACE = re.compile(r"(?:\s|//[^\n]*\n|/\*.*?\*/)*", re.DOTALL)


class NotJson(ValueError):
    """No JSON can be read here; says why."""


def loads(text: str) -> Json:
    """Strict JSON. Raises NotJson, also for NaN and for numbers that do not fit a float."""
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
        dumps(value).encode()
    except UnicodeEncodeError:
        raise NotJson("a text holds half of a surrogate pair, which is no character") from None
    except (ValueError, RecursionError) as exc:
        raise NotJson(str(exc) or "it nests too deep") from None
    return value


def repeats_keys(text: str) -> bool:
    """Does an object of this JSON name a property twice? Readers differ in which one they take."""
    found: list[bool] = []
    json.loads(text, object_pairs_hook=lambda pairs: found.append(len(dict(pairs)) < len(pairs)))
    return any(found)


def dumps(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _no_constant(name: str) -> float:
    raise NotJson(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise NotJson(f"{text} is too large for a number")
    return value


@dataclass(slots=True)
class Reading:
    """One JSON value found in a text. `spans`: where each value stands, by pointer, in characters."""

    value: Json = None
    end: int = 0
    is_mended: bool = False
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)


def read(text: str, start: int = 0) -> Reading:
    """Read the value that begins at `start`; what is cut off is ended. Raises NotJson."""
    reader = _Reader(text, start)
    value = reader.value("", 0)
    return Reading(value, reader.at, reader.is_mended, reader.spans)


def partial(text: str) -> Json:
    """The value so far of a document that is still being written; None before it has begun."""
    try:
        return read(text, SPACE.match(text).end()).value  # type: ignore[union-attr]
    except NotJson:
        return None


def candidates(text: str) -> Iterator[Json]:
    """Values that a model may have meant, taken from fences and prose. The best guess comes last."""
    text = text[:MAX_CHARS]
    sources = [found.group(1) for found in FENCE.finditer(text)]
    found = [value for source in [FENCE.sub("", text), *sources] for value in _values(source)]
    yield from found[-MAX_CANDIDATES:]


def _values(text: str) -> Iterator[Json]:
    at = 0
    while (match := re.compile(r"[{\[]").search(text, at)) is not None:
        try:
            reading = read(text, match.start())
        except NotJson:
            at = match.end()
            continue
        at = max(reading.end, match.end())
        yield reading.value
    try:
        yield loads(text.strip())
    except NotJson:
        return


class _Reader:
    def __init__(self, text: str, at: int) -> None:
        self._text = text
        self.at = at
        self.is_mended = False
        self.spans: dict[str, tuple[int, int]] = {}

    def value(self, path: str, depth: int) -> Json:
        if depth > MAX_DEPTH:
            raise NotJson("it nests too deep")
        self._skip()
        start = self.at
        char = self._peek()
        if char == "{":
            value: Json = self._object(path, depth)
        elif char == "[":
            value = self._array(path, depth)
        elif char in ('"', "'"):
            value = self._string(char)
        else:
            value = self._scalar()
        self.spans[path] = (start, self.at)
        return value

    def _peek(self) -> str:
        return self._text[self.at : self.at + 1]

    def _skip(self) -> None:
        match = SPACE.match(self._text, self.at)
        if match and match.end() > self.at:
            self.is_mended = self.is_mended or "/" in match.group()
            self.at = match.end()

    def _object(self, path: str, depth: int) -> Json:
        self.at += 1
        result: dict[str, Json] = {}
        while not self._ends("}"):
            quote = self._peek()
            if quote not in ('"', "'"):
                raise NotJson(f"a property name was expected at character {self.at}")
            key = self._string(quote)
            self._skip()
            if self._peek() != ":":
                if self.at < len(self._text):
                    raise NotJson(f"a colon was expected at character {self.at}")
                self.is_mended = True
                break  # cut off within a name
            self.at += 1
            self._skip()
            if self.at >= len(self._text):
                self.is_mended = True
                break
            result[key] = self.value(pointer(path, key), depth + 1)
        return result

    def _array(self, path: str, depth: int) -> Json:
        self.at += 1
        result: list[Json] = []
        while not self._ends("]"):
            result.append(self.value(pointer(path, len(result)), depth + 1))
        return result

    def _ends(self, bracket: str) -> bool:
        """Before an item: take the comma; at the bracket or at the end of the text: take that."""
        self._skip()
        had_comma = self._peek() == ","
        if had_comma:
            self.at += 1
            self._skip()
        if self.at >= len(self._text):
            self.is_mended = True
            return True
        if self._peek() == bracket:
            self.is_mended = self.is_mended or had_comma
            self.at += 1
            return True
        first = self._text[: self.at].rstrip()[-1:] in ("{", "[", ",") or had_comma
        if not first:
            if self._peek() not in "\"'{[-0123456789tfnTFN":
                raise NotJson(f"a comma was expected at character {self.at}")
            self.is_mended = True
        return False

    def _string(self, quote: str) -> str:
        start = self.at
        self.at += 1
        while self.at < len(self._text) and self._text[self.at] != quote:
            self.at += 2 if self._text[self.at] == "\\" else 1
        is_cut = self.at >= len(self._text)
        body = self._text[start + 1 : min(self.at, len(self._text))]
        self.at = min(self.at + 1, len(self._text))
        if is_cut:
            self.is_mended = True
            body = re.sub(r"\\(?:u[0-9A-Fa-f]{0,3})?$", "", body)
        if quote == "'":
            self.is_mended = True
            body = body.replace("\\'", "'").replace('"', '\\"')
        try:
            return str(json.loads(f'"{body}"'))
        except ValueError:
            self.is_mended = True
            return _escaped(body)

    def _scalar(self) -> Json:
        if (number := NUMBER.match(self._text, self.at)) is not None:
            self.at = number.end()
            rest = self._text[self.at :]
            if re.fullmatch(r"\.?(?:[eE][+-]?)?", rest) and rest:
                self.is_mended = True  # cut off within a number
                self.at = len(self._text)
            try:
                return loads(number.group())
            except NotJson as exc:
                raise NotJson(f"{exc} at character {number.start()}") from None
        if (word := WORD.match(self._text, self.at)) is not None:
            found = word.group()
            self.at = word.end()
            if found in WORDS:
                self.is_mended = self.is_mended or found[0].isupper()
                return WORDS[found]
            if self.at == len(self._text):
                for name, value in WORDS.items():
                    if name.startswith(found):
                        self.is_mended = True
                        return value
        raise NotJson(f"a value was expected at character {self.at}")


def _escaped(body: str) -> str:
    """A text with raw line breaks or wrong escapes."""
    fixed = re.sub(r'\\(?!["\\/bfnrtu])', r"\\\\", body)
    fixed = re.sub(r"\\u(?![0-9A-Fa-f]{4})", r"\\\\u", fixed)
    fixed = re.sub(r"[\x00-\x1f]", lambda found: f"\\u{ord(found.group()):04x}", fixed)
    try:
        return str(json.loads(f'"{fixed}"'))
    except ValueError as exc:
        raise NotJson(f"a text cannot be read: {exc}") from None
