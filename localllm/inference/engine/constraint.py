"""Which tokens may come next, so that the text becomes a document of one schema and ends within its budget.

Knows llguidance and the vocabulary as data: bytes and token ids. Knows nothing of llama.cpp, logits'
origin, slots or JSON Schema's keywords: the grammar arrives ready made.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from localllm.inference.engine import lookahead
from localllm.inference.engine.lookahead import ENDLESS, LIMITS, Lookahead
from localllm.inference.errors import ConstraintError

Ids = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]

FEW = 2_000  # so many allowed tokens are picked out one by one; more are masked in place
MAX_PIECE = 32  # bytes of the longest token that is worth looking for
NEVER = 1 << 30
MAX_GRAMMARS = 64
# How much the shortest ending may grow while nobody looks: per token, and at once by opening something.
GROWTH, MARGIN, MAX_MARGIN = 4, 64, 512
EFFORT, MAX_ENDINGS = 1_500, 3  # steps spent in looking for an ending, and how many are tried
MAX_UNREAD = 256  # bytes that the lookahead may be behind, so that it catches up within a step
MAX_OPTIMAL = 1_000  # bytes that are cut into as few tokens as can be, at about 8 µs each, while a batch waits
MAX_REASONING = 0.5  # of the tokens that the shortest document leaves
# An exponent of this size gets no further digit: what is beyond about 1e308 is no number any more.
LONG_EXPONENT = 29
NUMERIC, QUOTE, BACKSLASH = b"0123456789+-.eE", ord('"'), ord("\\")


class Vocabulary:
    """A model's tokens as bytes, ready to be matched. Built once per model.

    `special_ids` are control tokens, which no text contains; `end_ids` end an answer. `tokenize` gives
    the model's own tokens for a text; without it forced text is cut greedily.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        *,
        end_ids: Sequence[int],
        special_ids: Sequence[int] = (),
        tokenize: Callable[[str], list[int]] | None = None,
    ) -> None:
        self.pieces = list(pieces)
        self.size = len(self.pieces)
        self.end_ids = frozenset(end_ids)
        self.num_words = (self.size + 31) // 32
        self.all_ids = np.arange(self.size, dtype=np.int32)
        special = frozenset(special_ids) | self.end_ids
        plain = [(piece, id) for id, piece in enumerate(self.pieces) if piece and id not in special]
        self._id_of = dict(reversed(plain))
        self.digits = self._words_of(id for piece, id in plain if piece[:1].isdigit())
        self._max_piece = min(MAX_PIECE, max((len(piece) for piece, _ in plain), default=1))
        self.tokenizer = LLTokenizer(
            TokenizerWrapper(_Pieces(self.pieces, special, end_ids[0], tokenize or self._tokens)),
            eos_token=list(end_ids),
        )

    def _words_of(self, ids: Iterable[int]) -> Ids:
        """The tokens as bits."""
        bits = np.zeros(32 * self.num_words, np.uint8)
        bits[list(ids)] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)

    def _tokens(self, text: str) -> list[int]:
        return self.fewest(text.encode()) or []

    def fewest(self, data: bytes) -> list[int] | None:
        """The text in as few tokens as can be, whatever the tokenizer would make of it; None if it cannot be said."""
        counts, ends = [0] * (len(data) + 1), [0] * (len(data) + 1)  # of the best way from each byte on
        for at in range(len(data) - 1, -1, -1):
            sizes = range(1, min(self._max_piece, len(data) - at) + 1)
            ways = [(counts[at + n], -n) for n in sizes if counts[at + n] < NEVER and data[at : at + n] in self._id_of]
            counts[at], ends[at] = (ways and (min(ways)[0] + 1, at - min(ways)[1])) or (NEVER, 0)
        if counts[0] >= NEVER:
            return None
        tokens, at = [], 0
        while at < len(data):
            tokens.append(self._id_of[data[at : ends[at]]])
            at = ends[at]
        return tokens


class _Pieces:
    """What llguidance asks of a tokenizer."""

    def __init__(
        self, pieces: list[bytes], special_ids: Iterable[int], end_id: int, tokenize: Callable[[str], list[int]]
    ) -> None:
        self.tokens = pieces
        self.special_token_ids = sorted(special_ids)
        self.eos_token_id = end_id
        self.bos_token_id = None
        self._tokenize = tokenize

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("Only text is tokenized; loose bytes are cut greedily by the caller.")
        return self._tokenize(text)


class Grammars:
    """Grammars compiled for one vocabulary; the least recently used are forgotten."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()

    def get(self, digest: str, text: str, examples: Sequence[str] = ()) -> Grammar:
        """Raises ConstraintError for a grammar that cannot be compiled or can never end."""
        grammar = self._compiled.pop(digest, None) or Grammar(text, self.vocabulary, examples)
        self._compiled[digest] = grammar
        while len(self._compiled) > MAX_GRAMMARS:
            self._compiled.popitem(last=False)
        return grammar


class Grammar:
    """One compiled grammar. `shortest` is the shortest document that was found, `min_tokens` its length.

    `examples` are texts that fit the patterns of the schema; endings are made of them.
    """

    def __init__(self, text: str, vocabulary: Vocabulary, examples: Sequence[str] = ()) -> None:
        self.vocabulary = vocabulary
        self.matcher = LLMatcher(vocabulary.tokenizer, text, log_level=0, limits=LIMITS)
        if self.matcher.is_error():
            raise ConstraintError(f"The schema cannot be decoded by: {_reason(self.matcher)}.")
        self.lookahead = Lookahead(text, examples)
        self.shortest_ids = self._shortest_ids()
        self.min_tokens = len(self.shortest_ids)

    def _shortest_ids(self) -> list[int]:
        for ending in self.lookahead.endings(lookahead.EFFORT):
            ids = self.vocabulary.fewest(ending)
            if ids is not None and ends_with(self.matcher, ids):
                return ids
        raise ConstraintError(ENDLESS, "unsatisfiable")

    @property
    def shortest(self) -> str:
        return b"".join(self.vocabulary.pieces[token] for token in self.shortest_ids).decode("utf-8", "replace")

    def accepts(self, text: str) -> bool:
        """May a model write exactly this?"""
        constraint = Constraint(self, len(text.encode()) + 1)
        try:
            constraint.replay(self.vocabulary.tokenizer.tokenize_str(text))
        except ConstraintError:
            return False
        return constraint.may_end

    def start(self, budget: int, preface: Preface | None = None) -> Constraint:
        """A constraint for one answer of at most `budget` tokens, reasoning included."""
        needed = self.min_tokens + (len(preface.closing) if preface and preface.is_open else 0)
        if budget < needed:
            raise ConstraintError(
                f"max_tokens is {budget}, but the shortest answer to this schema takes {needed} tokens. "
                f"Ask for at least {needed}.",
                "truncated",
            )
        return Constraint(self, budget, preface)


@dataclass(frozen=True, slots=True)
class Preface:
    """What may come before the document: reasoning between two tags, given as tokens.

    With `is_open` the prompt ends with the opening tag; otherwise the model may begin with it.
    """

    opening: tuple[int, ...]
    closing: tuple[int, ...]
    is_open: bool = False


class Constraint:
    """The state of one answer: what may come next, and whether it can still end within its budget.

    Not for use by two threads.
    """

    def __init__(self, grammar: Grammar, budget: int, preface: Preface | None = None) -> None:
        self.vocabulary = grammar.vocabulary
        self._grammar = grammar
        self.is_done = False
        self.is_closed = False  # the budget ended the answer, not the model
        self._matcher = grammar.matcher.deep_copy()
        self._lookahead = grammar.lookahead.copy()
        self._unread = b""  # of the document, by the lookahead
        self._exponent = Exponent()
        self._remaining = budget
        self._margin = min(MAX_MARGIN, max(MARGIN, 2 * grammar.min_tokens))
        self._preface = preface  # None as soon as the document has begun
        self._reasoned = b""
        self._num_to_reason = int(
            MAX_REASONING * (budget - grammar.min_tokens - len(preface.closing if preface else ()))
        )
        self._ending: list[int] | None = grammar.shortest_ids  # from the present state, when it is known
        self._last_ending: list[int] | None = None  # one that fitted some state before
        self._num_until_check = self._patience(grammar.min_tokens) - 1
        self._words = np.zeros(self.vocabulary.num_words, np.int32)

    # What may come next

    def candidates(self, logits: Logits) -> tuple[Ids, Logits]:
        """The tokens to sample from and their logits. `logits`: shape (vocabulary size,), left as it is.

        Few are picked out; of many the forbidden ones are kept with a logit of minus infinity.
        """
        if self._is_reasoning:
            masked = logits.copy()
            masked[list(self.vocabulary.end_ids)] = -np.inf
            return self.vocabulary.all_ids, masked
        words = self._mask()
        if int(np.bitwise_count(words.view(np.uint32)).sum()) <= FEW:
            ids = self._allowed()
            if not len(ids):
                raise ConstraintError(f"No token can follow: {_reason(self._matcher)}.")
            return ids, logits[ids]
        masked = np.take(_TABLE, words.view(np.uint8), axis=0).reshape(-1)[: self.vocabulary.size]
        masked += logits
        return self.vocabulary.all_ids, masked

    def allowed(self) -> Ids:
        """Ids of all tokens that may come next, in ascending order."""
        self._mask()
        return self._allowed()

    def _mask(self) -> Ids:
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        if self._matcher.is_error():
            raise ConstraintError(f"The schema became too costly to follow: {_reason(self._matcher)}.")
        if self._exponent.is_long:
            self._words &= ~self.vocabulary.digits
        if self._preface:
            self._offer_reasoning(self._preface.opening[0])
        return self._words

    def _offer_reasoning(self, opening: int) -> None:
        byte, bit = opening >> 3, np.uint8(1 << (opening & 7))
        octets = self._words.view(np.uint8)
        if octets[byte] & bit:
            self._preface = None  # a document may begin with the same token
        octets[byte] |= bit

    def _allowed(self) -> Ids:
        return np.flatnonzero(np.unpackbits(self._words.view(np.uint8), bitorder="little")).astype(np.int32)

    @property
    def may_end(self) -> bool:
        """Is the document complete as it stands?"""
        return self.is_done or (not self._preface and self._matcher.is_accepting())

    # What comes

    def start(self) -> list[int]:
        """Tokens that every answer begins with. They need no sampling."""
        if self._is_reasoning and self._num_to_reason <= 0:
            return self._end_reasoning()
        return [] if self._preface else self._take([])

    def accept(self, token: int) -> list[int]:
        """Take a sampled token; returns what to append to the answer: it, and what is forced to follow.

        When the answer could not end any more within the budget, returns its shortest ending instead
        and `is_closed`.
        """
        if self._is_reasoning:
            return self._reason([token])
        if self._preface and token == self._preface.opening[0]:
            return self._begin_reasoning(self._preface)
        self._preface = None
        if token in self.vocabulary.end_ids:
            self.is_done = True
            return [token]
        return self._take([token])

    def replay(self, tokens: Sequence[int]) -> None:
        """Follow an answer that has been given already, in part. Raises ConstraintError where it breaks off."""
        for token in tokens:
            self._mask()  # the effort that a token may take is counted from here
            if not self._matcher.try_consume_tokens([token]):
                raise ConstraintError("The answer so far does not fit the schema, so it cannot be continued.")
            self._remember([token])
        self._read()
        self._num_until_check = 0
        self.is_done = self._matcher.is_stopped()

    def close(self) -> list[int]:
        """End the answer now, in as few tokens as were found."""
        ending = self._ending if self._ending is not None else self._find_ending()
        if ending is None:
            raise ConstraintError("The answer cannot be ended within its budget.", "truncated")
        self._matcher.consume_tokens(ending)
        self._remember(ending)
        self.is_done = self.is_closed = True
        return ending

    # Reasoning

    @property
    def _is_reasoning(self) -> bool:
        return self._preface is not None and self._preface.is_open

    def _begin_reasoning(self, preface: Preface) -> list[int]:
        self._preface = replace(preface, is_open=True)
        self._remaining -= len(preface.opening)
        self._num_to_reason -= len(preface.opening)
        return list(preface.opening)

    def _reason(self, tokens: list[int]) -> list[int]:
        """Take tokens of the reasoning; end it in time for the document."""
        assert self._preface is not None
        closing = b"".join(self.vocabulary.pieces[token] for token in self._preface.closing)
        self._remaining -= len(tokens)
        self._num_to_reason -= len(tokens)
        self._reasoned += b"".join(self.vocabulary.pieces[token] for token in tokens)
        if closing in self._reasoned:
            self._preface = None
            return tokens + self._take([])
        self._reasoned = self._reasoned[-len(closing) :]
        return tokens + self._end_reasoning() if self._num_to_reason <= 0 else tokens

    def _end_reasoning(self) -> list[int]:
        assert self._preface is not None
        return self._reason(list(self._preface.closing))

    # The document

    def _take(self, tokens: list[int]) -> list[int]:
        """Take the tokens and what is forced after them, if the answer can still end then; else end it before them."""
        if len(self._unread) > MAX_UNREAD:
            self._read()
        before = (self._unread, self._remaining, self._ending)
        taken = self._advance(tokens)
        if self._num_until_check > 0 and not self._opens(taken):
            return taken
        lookahead = self._lookahead.copy()
        if self._can_end():
            return taken
        if before[2] is None and self._remaining > 4 * MAX_MARGIN:
            self._num_until_check = self._remaining // 4  # no ending is known, but there may be one further on
            return taken
        self._matcher.rollback(len(taken))
        self._lookahead = lookahead
        self._unread, self._remaining, self._ending = before
        self.is_done = False
        return self.close()

    def _opens(self, tokens: list[int]) -> bool:
        """What is opened may take many more tokens to be closed again than were held in reserve."""
        if self._remaining > 2 * MAX_MARGIN:
            return False
        return any(b"{" in self.vocabulary.pieces[token] or b"[" in self.vocabulary.pieces[token] for token in tokens)

    def _advance(self, tokens: list[int]) -> list[int]:
        if tokens and not self._matcher.consume_tokens(tokens):
            raise ConstraintError(f"The token {tokens[0]} was not allowed: {_reason(self._matcher)}.")
        forced = [] if self._matcher.is_stopped() else self._matcher.compute_ff_tokens()
        if forced:
            self._matcher.consume_tokens(forced)
        self._remember([*tokens, *forced])
        self._num_until_check -= 1 + len(forced)
        self.is_done = self._matcher.is_stopped()
        return [*tokens, *forced]

    def _remember(self, tokens: Sequence[int]) -> None:
        self._remaining -= len(tokens)
        text = b"".join(self.vocabulary.pieces[token] for token in tokens)
        self._unread += text
        self._exponent.read(text)
        ending = self._ending
        self._ending = ending[len(tokens) :] if ending is not None and ending[: len(tokens)] == [*tokens] else None

    def _can_end(self) -> bool:
        if self.is_done:
            return self._remaining >= 0
        if self._ending is None:
            self._ending = self._find_ending()
        if self._ending is None or len(self._ending) > self._remaining:
            return False
        self._num_until_check = self._patience(len(self._ending))
        self.is_done = self.is_closed = self._remaining == 0
        return True

    def _patience(self, num_ending: int) -> int:
        """For how many tokens the ending needs no second look."""
        return max(1, (self._remaining - num_ending - self._margin) // (1 + GROWTH))

    def _find_ending(self) -> list[int] | None:
        """An ending within the budget, from the present state."""
        # Within a text or a list the ending that was found a token ago mostly still fits.
        if self._last_ending is None or not self._fits(self._last_ending):
            self._read()
            found = map(self._tokenized, islice(self._lookahead.endings(EFFORT), MAX_ENDINGS))
            self._last_ending = next((tokens for tokens in found if tokens is not None), None)
        return self._last_ending

    def _read(self) -> None:
        self._lookahead.read(self._unread)
        self._unread = b""

    def _fits(self, ending: list[int]) -> bool:
        return len(ending) <= self._remaining and ends_with(self._matcher, ending)

    def _tokenized(self, ending: bytes) -> list[int] | None:
        """The ending in tokens, if they are few enough."""
        tokens = self.vocabulary.tokenizer.greedy_tokenize(ending.decode("utf-8", "replace"))
        if self._fits(tokens):
            return tokens
        fewest = self.vocabulary.fewest(ending) if len(ending) <= MAX_OPTIMAL else None
        return fewest if fewest is not None and self._fits(fewest) else None


class Exponent:
    """Follows a document, to tell how large the exponent of the number at its end is."""

    _SIZE = re.compile(rb"[eE][+-]?(\d+)$")

    def __init__(self) -> None:
        self._is_text = self._is_escaped = False
        self._number = b""

    def read(self, document: bytes) -> None:
        for byte in document:
            if self._is_text:
                self._is_text = byte != QUOTE or self._is_escaped
                self._is_escaped = byte == BACKSLASH and not self._is_escaped
            elif byte in NUMERIC:
                self._number += bytes((byte,))
            else:
                self._number = b""
                self._is_text = byte == QUOTE

    @property
    def is_long(self) -> bool:
        size = self._SIZE.search(self._number) if len(self._number) > 3 else None
        return size is not None and int(size[1]) >= LONG_EXPONENT


def ends_with(matcher: LLMatcher, tokens: list[int]) -> bool:
    """Would these tokens complete the document?"""
    matcher = matcher.deep_copy()
    return matcher.try_consume_tokens(tokens) == len(tokens) and bool(matcher.is_accepting())


_TABLE = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") == 1, 0.0, -np.inf
).astype(np.float32)


def _reason(matcher: LLMatcher) -> str:
    text = matcher.get_error().partition("\n")[0].strip().rstrip(".")
    return text[:200] or matcher.stop_reason()
