"""How a document can still end: short ways that a grammar allows, byte by byte.

No model and no vocabulary: by bytes it takes a fraction of the time that masks over many tokens would.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import ClassVar

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

# A step must stay below 50 ms: about 14,000 fuel and 20,000 items are spent in a millisecond.
LIMITS = LLParserLimits(
    max_items_in_row=50_000, step_max_items=500_000, step_lexer_fuel=500_000, max_lexer_states=100_000,
    verbose_errors=False,
)  # fmt: skip
EFFORT = 40_000  # steps spent in looking for the shortest document
ENDLESS = (
    "No document was found that satisfies this schema: it may ask for something endless, or contradict itself. "
    "Loosen what it requires."
)
WALKS = 12  # attempts at an ending
MAX_BYTES = 1 << 17  # of an ending
STRIDE = 16  # bytes that are read at once
QUOTE, BACKSLASH = ord('"'), ord("\\")
DIGITS = b"0123456789"
# Outside of texts: what ends comes first, then the shortest values, last what begins something.
STRUCTURE = b'}]0"[{ntf1:,23456789-'
LETTERS = bytes(code for code in range(32, 127) if chr(code).isalnum())
MARKS = bytes(code for code in range(32, 127) if code not in LETTERS and code not in (QUOTE, BACKSLASH))


class _Bytes:
    """A tokenizer whose tokens are the 256 bytes and an end."""

    tokens: ClassVar = [*(bytes([code]) for code in range(256)), b"<end>"]
    special_token_ids: ClassVar = [256]
    eos_token_id = 256
    bos_token_id = None

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("Only text is tokenized; loose bytes are cut greedily by the caller.")
        return list(text.encode())


@cache
def _tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()))


class Lookahead:
    """A document as it stands, and how it can end. `examples` are texts that fit the patterns of the schema."""

    def __init__(self, grammar: str, examples: Sequence[str] = ()) -> None:
        self._matcher = LLMatcher(_tokenizer(), grammar, log_level=0, limits=LIMITS)
        self._examples = [json.dumps(example, ensure_ascii=False)[1:].encode() for example in examples]
        self._is_in_text = self._is_escaped = False
        self._last = 0
        self._length = 0  # bytes since the text's opening quote

    def copy(self) -> Lookahead:
        other = object.__new__(Lookahead)
        other.__dict__ = self.__dict__ | {"_matcher": self._matcher.deep_copy()}
        return other

    def read(self, data: bytes) -> bool:
        """Follow what was written. False when it does not fit."""
        for at in range(0, len(data), STRIDE):
            self._matcher.compute_bitmask()  # the effort that may be taken is counted from here
            if not self._matcher.consume_tokens(list(data[at : at + STRIDE])):
                return False
        for byte in data:
            self._length += 1
            if self._is_escaped:
                self._is_escaped = False
            elif byte == BACKSLASH and self._is_in_text:
                self._is_escaped = True
            elif byte == QUOTE:
                self._is_in_text = not self._is_in_text
                self._length = 0
            self._last = byte
        return True

    def endings(self, effort: int) -> Iterator[bytes]:
        """Ways to end the document, mostly the shortest first, found in `effort` steps altogether."""
        for seed in range(WALKS):
            walk = _Walk(self.copy(), effort, random.Random(seed), boldness=1 - 0.05 * seed)
            ending = walk.to_the_end()
            effort = walk.effort
            if ending is not None:
                yield ending
            if effort <= 0:
                return


class _Walk:
    """One attempt at an ending: the first step that leads on, or with less boldness now and then another."""

    def __init__(self, document: Lookahead, effort: int, chance: random.Random, boldness: float) -> None:
        self.effort = effort
        self._document = document
        self._matcher = document._matcher
        self._chance = chance
        self._boldness = boldness
        self._mask = 0

    def to_the_end(self) -> bytes | None:
        path = bytearray()
        while not self._matcher.is_accepting():
            self.effort -= 1
            step = self._step()
            if not step or not self._document.read(step) or len(path) > MAX_BYTES or self.effort < 0:
                return None
            path += step
        return bytes(path)

    def _step(self) -> bytes:
        """The next bytes; none when there is no way on."""
        if forced := self._matcher.compute_ff_bytes():
            return bytes(forced)
        self._mask = int.from_bytes(self._matcher.compute_bitmask(), "little")
        if self._matcher.is_error():
            return b""
        if not self._document._is_in_text:
            return self._structure()
        if self._allowed(b'"'):
            return b'"'
        return self._rest_of_example() or self._character()

    def _allowed(self, among: bytes) -> bytes:
        return bytes(code for code in among if self._mask >> code & 1)

    def _one_of(self, codes: bytes) -> bytes:
        return bytes([self._chance.choice(codes)])

    def _rest_of_example(self) -> bytes:
        """End a text as an example ends: from the same position on, or with the whole of it."""
        for example in self._document._examples:
            for rest in dict.fromkeys((example[self._document._length :], example)):
                taken = self._matcher.try_consume_tokens(list(rest)) if rest else 0
                if taken:
                    self._matcher.rollback(taken)
                if rest and taken == len(rest):
                    return rest
        return b""

    def _character(self) -> bytes:
        letters, marks = self._allowed(LETTERS), self._allowed(MARKS)
        if marks and (not letters or self._chance.random() < 0.4):
            return self._one_of(marks)
        return self._one_of(letters) if letters else self._anything()

    def _structure(self) -> bytes:
        last = self._document._last
        if last in DIGITS and (ends := self._allowed(b"}],")):
            return ends[:1]
        if last in b"0123456789.-" and (digits := self._allowed(DIGITS)):
            return self._one_of(digits)
        structure = self._allowed(STRUCTURE)
        if not structure:
            return self._anything()
        # What is short at first may lead nowhere: 0 where more than 0 is asked for.
        return structure[:1] if self._chance.random() < self._boldness else self._one_of(structure)

    def _anything(self) -> bytes:
        allowed = self._allowed(bytes(range(256)))
        return self._one_of(allowed) if allowed else b""
