"""Regular expressions as JSON Schema means them (ECMA-262), for engines that run in linear time.

One translation serves both: RE2, which the validator runs, and the Rust syntax that llguidance reads.
What has no regular meaning, such as a look-around or a back-reference, is refused.
"""

from __future__ import annotations

import re
import re._parser as sre  # type: ignore[import-not-found]
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import re2  # type: ignore[import-untyped]

MAX_EXAMPLE = 1_000
MAX_CHAR = 0x10FFFF
Ranges = tuple[tuple[int, int], ...]
DIGIT: Ranges = ((0x30, 0x39),)
WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
SPACE: Ranges = (
    (0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
)  # fmt: skip
LINE_END: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
CONTROLS = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D, "0": 0x00}
# Unicode properties by their long names; RE2 knows the short ones only.
PROPERTIES = {
    "Letter": "L", "Lowercase_Letter": "Ll", "Uppercase_Letter": "Lu", "Titlecase_Letter": "Lt", "Mark": "M",
    "Number": "N", "Decimal_Number": "Nd", "digit": "Nd", "Punctuation": "P", "punct": "P", "Symbol": "S",
    "Separator": "Z", "Space_Separator": "Zs", "Other": "C", "Control": "Cc", "Alphabetic": "L",
    "Lowercase": "Ll", "Uppercase": "Lu",
}  # fmt: skip
QUANTIFIER = re.compile(r"\{\d+(,\d*)?\}")
FLAGS = re.compile(r"\(\?[ims]*(-[ims]+)?[:)]")


class PatternError(ValueError):
    """A sentence's end: what in the pattern has no meaning here."""


def _complement(ranges: Ranges) -> Ranges:
    result, start = [], 0
    for low, high in ranges:
        if start < low:
            result.append((start, low - 1))
        start = high + 1
    return (*result, (start, MAX_CHAR))


def _char(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code:X}}}"


def _ranges(ranges: Ranges) -> str:
    return "".join(_char(low) if low == high else f"{_char(low)}-{_char(high)}" for low, high in ranges)


SHORTHANDS = {
    name: text
    for letter, ranges in {"d": DIGIT, "w": WORD, "s": SPACE}.items()
    for name, text in ((letter, _ranges(ranges)), (letter.upper(), _ranges(_complement(ranges))))
}
ANYTHING = f"[{_ranges(((0, MAX_CHAR),))}]"
DOT = f"[{_ranges(_complement(LINE_END))}]"


class _Translator:
    """Reads a pattern once, from left to right."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def translate(self) -> str:
        parts: list[str] = []
        while self._at < len(self._pattern):
            parts.append(self._term())
        return "".join(parts)

    def _rest(self) -> str:
        return self._pattern[self._at :]

    def _next(self) -> str:
        if self._at >= len(self._pattern):
            raise PatternError("ends too early")
        self._at += 1
        return self._pattern[self._at - 1]

    def _term(self) -> str:
        char = self._next()
        match char:
            case "\\":
                return self._escape(in_class=False)
            case "[":
                return self._class()
            case "(":
                return self._group()
            case ".":
                return DOT
            case "{":
                self._at -= 1
                if found := QUANTIFIER.match(self._pattern, self._at):
                    self._at = found.end()
                    return found.group()
                self._at += 1
                return r"\{"
            case "}" | "]":
                return "\\" + char
            case "^" | "$" | "|" | ")" | "*" | "+" | "?":
                return char
        return _char(ord(char))

    def _group(self) -> str:
        rest = self._pattern[self._at - 1 :]
        if not rest.startswith("(?"):
            return "(?:"
        if found := FLAGS.match(rest):
            self._at += found.end() - 1
            return found.group()
        if found := re.match(r"\(\?P?<[A-Za-z_]\w*>", rest):
            self._at += found.end() - 1
            return "(?:"
        raise PatternError(f"uses {rest[:4]!r}, which looks around or back and cannot run in linear time")

    def _escape(self, *, in_class: bool) -> str:
        char = self._next()
        if char in SHORTHANDS:
            return SHORTHANDS[char] if in_class else f"[{SHORTHANDS[char]}]"
        if char in "pP":
            return self._property(char)
        if not in_class and char in "bB":
            return "\\" + char
        if not in_class and char in "AzZ":
            return "^" if char == "A" else "$"
        if not in_class and (char in "123456789" or char == "k"):
            raise PatternError(f"refers back with \\{char}, which cannot run in linear time")
        return _char(self._code(char, in_class=in_class))

    def _code(self, char: str, *, in_class: bool) -> int:
        if char in CONTROLS:
            return CONTROLS[char]
        if char == "b" and in_class:
            return 0x08
        if char == "c" and (found := re.match("[A-Za-z]", self._rest())):
            self._at += 1
            return ord(found.group()) % 32
        if found := re.match(r"u\{([0-9A-Fa-f]+)\}|u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})", char + self._rest()):
            self._at += found.end() - 1
            code = int(next(filter(None, found.groups())), 16)
            return self._joined(code)
        return ord(char)

    def _joined(self, code: int) -> int:
        """A high surrogate with the low one that is written after it."""
        found = re.match(r"\\u([dD][c-fC-F][0-9A-Fa-f]{2})", self._rest())
        if 0xD800 <= code < 0xDC00 and found:
            self._at += found.end()
            return 0x10000 + ((code - 0xD800) << 10) + int(found.group(1), 16) - 0xDC00
        if code > MAX_CHAR or 0xD800 <= code < 0xE000:
            raise PatternError(f"names U+{code:04X}, which is no character")
        return code

    def _property(self, char: str) -> str:
        found = re.match(r"\{(?:(?:gc|General_Category|sc|Script)=)?([A-Za-z_]+)\}", self._rest())
        if not found:
            raise PatternError(f"has \\{char} without a property in braces")
        self._at += found.end()
        return f"\\{char}{{{PROPERTIES.get(found.group(1), found.group(1))}}}"

    def _class(self) -> str:
        negated = self._rest().startswith("^")
        self._at += negated
        items: list[str] = []
        while (char := self._next()) != "]":
            items.append(self._class_item(char))
        if not items:
            return ANYTHING if negated else f"[^{ANYTHING[1:]}"
        return f"[{'^' if negated else ''}{''.join(items)}]"

    def _class_item(self, char: str) -> str:
        low = self._class_char(char)
        if isinstance(low, str) or not re.match(r"-[^\]]", self._rest()):
            return low if isinstance(low, str) else _char(low)
        self._at += 1
        high = self._class_char(self._next())
        if isinstance(high, str):
            return f"{_char(low)}{_char(ord('-'))}{high}"
        if high < low:
            raise PatternError(f"has the empty range {chr(low)}-{chr(high)}")
        return f"{_char(low)}-{_char(high)}"

    def _class_char(self, char: str) -> int | str:
        """One character's code, or the text of a whole set of them."""
        if char != "\\":
            return ord(char)
        following = self._next()
        if following in SHORTHANDS or following in "pP":
            self._at -= 1
            return self._escape(in_class=True)
        return self._code(following, in_class=True)


def translate(pattern: str) -> str:
    """The same language in the syntax that RE2 and llguidance share. Raises PatternError."""
    translated = _Translator(pattern).translate()
    _compile(translated)
    return translated


def example(translated: str) -> str | None:
    """A short text that a translated pattern occurs in, if one is found."""
    in_python = re.sub(r"\\x\{([0-9A-F]+)\}", lambda found: f"\\U{int(found.group(1), 16):08X}", translated)
    in_python = re.sub(r"\\p\{\w+\}", "A-Za-z" if "[\\p" in in_python else "[A-Za-z]", in_python)
    try:
        text = _shortest(sre.parse(in_python))
    except (re.error, RecursionError, OverflowError):
        return None
    return text if len(text) <= MAX_EXAMPLE and matches(translated, text) else None


def _shortest(tree: Any) -> str:
    return "".join(_shortest_of(kind, value) for kind, value in tree)


def _shortest_of(kind: Any, value: Any) -> str:
    if kind is sre.LITERAL:
        return chr(value)
    if kind in (sre.NOT_LITERAL, sre.ANY):
        return "a" if value != ord("a") else "b"
    if kind is sre.IN:
        return _one_of(value)
    if kind is sre.BRANCH:
        return min((_shortest(branch) for branch in value[1]), key=len)
    if kind is sre.SUBPATTERN:
        return _shortest(value[-1])
    if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        return _shortest(value[2]) * min(int(value[0]), MAX_EXAMPLE)
    return ""


def _one_of(items: Any) -> str:
    """A plain character of the class, if it has one."""
    ranges = [(value, value) if kind is sre.LITERAL else value for kind, value in items if kind is not sre.NEGATE]
    inside = [pair for pair in ranges if isinstance(pair, tuple)]
    if len(inside) < len(items):  # negated
        likely = map(chr, (0x61, 0x30, 0x41, 0x2D, *range(0x20, 0x2FF)))
        return next((char for char in likely if not any(low <= ord(char) <= high for low, high in inside)), "")
    wanted = [char for char in "a01A" if any(low <= ord(char) <= high for low, high in inside)]
    return wanted[0] if wanted else chr(max(inside[0][0], min(0x20, inside[0][1])))


def exactly(texts: Iterable[str]) -> str:
    """A pattern for these strings and no others."""
    return f"^(?:{'|'.join(_literal(text) for text in texts)})$"


def excluding(texts: Iterable[str]) -> str:
    """A pattern for every string that is none of these."""
    return f"^(?:{_excluding(frozenset(texts))})$"


def _literal(text: str) -> str:
    return "".join(_char(ord(char)) for char in text)


def _excluding(texts: frozenset[str]) -> str:
    """Leave the tree of the texts somewhere: after a node that is none of them, or by another character."""
    branches: dict[str, set[str]] = {}
    for text in texts:
        if text:
            branches.setdefault(text[0], set()).add(text[1:])
    ways = [] if "" in texts else [""]
    others = _ranges(_complement(tuple(sorted((ord(char), ord(char)) for char in branches))))
    ways.append(f"[{others}]{ANYTHING}*")
    ways += [f"{_char(ord(char))}(?:{_excluding(frozenset(rest))})" for char, rest in sorted(branches.items())]
    return "|".join(ways)


@lru_cache(maxsize=4096)
def _compile(translated: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 16 << 20
    try:
        return re2.compile(translated, options=options)
    except re2.error as exc:
        detail = exc.args[0].decode("utf-8", "replace") if exc.args and isinstance(exc.args[0], bytes) else str(exc)
        raise PatternError(f"is not understood ({detail})") from None


@lru_cache(maxsize=4096)
def _searcher(pattern: str) -> Any:
    return _compile(translate(pattern))


def search(pattern: str, text: str) -> bool:
    """Does the schema's `pattern` occur in `text`? Linear in `text`. Raises PatternError."""
    # A lone surrogate is no character to RE2; nothing but itself should be lost by that.
    return _searcher(pattern).search(text.encode("utf-8", "replace").decode()) is not None


def matches(translated: str, text: str) -> bool:
    """Does an already translated pattern occur in `text`?"""
    return _compile(translated).search(text.encode("utf-8", "replace").decode()) is not None
