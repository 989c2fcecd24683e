"""Which tokens may come next, so that the text becomes a document of one schema, and how it can still end.

Knows llguidance and the vocabulary as data: bytes and token ids. Knows nothing of llama.cpp, logits'
origin, slots or JSON Schema's keywords: the grammar arrives ready made.
"""

from __future__ import annotations

import json
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from localllm.inference.errors import ConstraintError

Ids = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]

FEW = 2_000  # so many allowed tokens are picked out one by one; more are masked in place
MAX_GRAMMARS = 64
# A step must stay below 50 ms: about 14,000 fuel and 20,000 items are spent in a millisecond.
LIMITS = LLParserLimits(
    max_items_in_row=50_000, step_max_items=500_000, step_lexer_fuel=500_000, max_lexer_states=100_000,
    verbose_errors=False,
)  # fmt: skip
# How much the shortest ending may grow while nobody looks: per token, and at once by opening something.
GROWTH, MARGIN, MAX_MARGIN = 4, 64, 512
MAX_ENDING = 32_768
COMPILE_EFFORT, EFFORT = 40_000, 2_000  # steps spent in looking for an ending
WALKS = 12  # attempts at a text that fits a pattern


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
        self.tokenizer = LLTokenizer(
            TokenizerWrapper(_Pieces(self.pieces, special_ids, end_ids, tokenize)), eos_token=list(end_ids)
        )
        self.all_ids = np.arange(self.size, dtype=np.int32)
        special = frozenset(special_ids) | self.end_ids
        plain = [(piece, id) for id, piece in enumerate(self.pieces) if piece and id not in special]
        self.quotes = _ids((_rank_of_quote(piece), id) for piece, id in plain)
        self.structure = _ids((_rank_of_structure(piece), id) for piece, id in plain)
        self.after_number = _ids((b"}],".find(piece), id) for piece, id in plain if len(piece) == 1 and piece in b"}],")
        printable = [
            (piece, id) for piece, id in plain if len(piece) == 1 and 32 <= piece[0] < 127 and piece not in b'"\\'
        ]
        self.digits = _ids((0, id) for piece, id in plain if len(piece) == 1 and piece.isdigit())
        self.letters = _ids((0, id) for piece, id in printable if piece.isalnum())
        self.marks = _ids((0, id) for piece, id in printable if not piece.isalnum())


class _Pieces:
    """What llguidance asks of a tokenizer."""

    def __init__(
        self,
        pieces: list[bytes],
        special_ids: Sequence[int],
        end_ids: Sequence[int],
        tokenize: Callable[[str], list[int]] | None,
    ) -> None:
        self.tokens = pieces
        self.special_token_ids = sorted({*special_ids, *end_ids})
        self.eos_token_id = end_ids[0]
        self.bos_token_id = None
        self._tokenize = tokenize or self._greedy
        self._longest = max(map(len, pieces), default=1)
        self._id_of = {piece: id for id, piece in reversed(list(enumerate(pieces))) if piece}

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("Only text is tokenized; loose bytes are cut greedily by the caller.")
        return self._tokenize(text)

    def _greedy(self, text: str) -> list[int]:
        data, ids = text.encode(), []
        while data:
            size = next((n for n in range(min(len(data), self._longest), 0, -1) if data[:n] in self._id_of), 1)
            if data[:size] in self._id_of:
                ids.append(self._id_of[data[:size]])
            data = data[size:]
        return ids


def _ids(ranked: Any) -> Ids:
    """Token ids by their rank, unranked ones left out."""
    return np.array([id for rank, id in sorted((rank, id) for rank, id in ranked if rank is not None)], np.int32)


def _rank_of_quote(piece: bytes) -> int | None:
    """Tokens that end a text, those that end most behind it first."""
    return -len(piece) if piece.startswith(b'"') and not piece[1:].strip(b"}]") else None


def _rank_of_structure(piece: bytes) -> tuple[int, int] | None:
    """Outside of texts: what ends comes first, then the shortest values, last what begins something."""
    if not piece.strip(b"}]"):
        return (0, -len(piece))
    order = (b"0", b'""', b"[]", b"{}", b"null", b"true", b"false", b"1", b'"', b"{", b"[", b":", b",", b'":', b'","')
    if piece in order:
        return (1, order.index(piece))
    return (2, piece[0]) if len(piece) == 1 and piece in b"23456789-" else None


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
        self.examples = [json.dumps(example, ensure_ascii=False)[1:].encode() for example in examples]
        self.matcher = LLMatcher(vocabulary.tokenizer, text, log_level=0, limits=LIMITS)
        if self.matcher.is_error():
            raise ConstraintError(f"The schema cannot be decoded by: {_reason(self.matcher)}.")
        ending = _Ending(self, self.matcher, _TextState()).find(MAX_ENDING, COMPILE_EFFORT)
        if ending is None:
            raise ConstraintError(
                "No document was found that satisfies this schema: it may ask for something endless, or "
                "contradict itself. Loosen what it requires.",
                "unsatisfiable",
            )
        self.min_tokens = len(ending)
        self.shortest = b"".join(vocabulary.pieces[token] for token in ending).decode("utf-8", "replace")

    def accepts(self, text: str) -> bool:
        """May a model write exactly this?"""
        constraint = Constraint(self, len(text.encode()) + 1)
        try:
            constraint.replay(self.vocabulary.tokenizer.tokenize_str(text))
        except ConstraintError:
            return False
        return constraint.may_end

    def start(self, budget: int, after: str = "") -> Constraint:
        """A constraint for one answer of at most `budget` tokens.

        With `after`, such as `</think>`, anything may be written until that text has come.
        """
        if budget < self.min_tokens:
            raise ConstraintError(
                f"max_tokens is {budget}, but the shortest answer to this schema takes {self.min_tokens} tokens. "
                f"Ask for at least {self.min_tokens}.",
                "truncated",
            )
        return Constraint(self, budget, after)


class _TextState:
    """Within a JSON text, or outside? Follows the bytes."""

    __slots__ = ("in_string", "is_escaped", "last", "length")

    def __init__(self) -> None:
        self.in_string = self.is_escaped = False
        self.last = 0
        self.length = 0  # bytes since the text's opening quote

    def copy(self) -> _TextState:
        other = _TextState()
        other.in_string, other.is_escaped = self.in_string, self.is_escaped
        other.last, other.length = self.last, self.length
        return other

    def push(self, data: bytes) -> None:
        for byte in data:
            self.length += 1
            if self.is_escaped:
                self.is_escaped = False
            elif byte == 0x5C and self.in_string:
                self.is_escaped = True
            elif byte == 0x22:
                self.in_string = not self.in_string
                self.length = 0
            self.last = byte


class Constraint:
    """The state of one answer: what may come next, and whether it can still end within its budget.

    Not for use by two threads.
    """

    def __init__(self, grammar: Grammar, budget: int, after: str = "") -> None:
        self.vocabulary = grammar.vocabulary
        self._grammar = grammar
        self.is_done = False
        self.is_closed = False  # the budget ended the answer, not the model
        self._matcher = grammar.matcher.deep_copy()
        self._state = _TextState()
        self._remaining = budget
        self._margin = min(MAX_MARGIN, max(MARGIN, 2 * grammar.min_tokens))
        self._after = after.encode()  # empty as soon as the document may begin
        self._tail = b""
        self._ending: list[int] | None = None  # from the present state, when it is known
        self._last_ending: list[int] = []  # one that fitted some state before
        self._num_until_check = self._patience(grammar.min_tokens)
        self._words = np.zeros(self.vocabulary.num_words, np.int32)

    # What may come next

    def candidates(self, logits: Logits) -> tuple[Ids, Logits]:
        """The tokens to sample from and their logits. `logits`: shape (vocabulary size,), left as it is.

        Few are picked out; of many the forbidden ones are kept with a logit of minus infinity.
        """
        if self._after:
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
        return self._words

    def _allowed(self) -> Ids:
        return np.flatnonzero(np.unpackbits(self._words.view(np.uint8), bitorder="little")).astype(np.int32)

    @property
    def may_end(self) -> bool:
        """Is the document complete as it stands?"""
        return self.is_done or (not self._after and self._matcher.is_accepting())

    # What comes

    def start(self) -> list[int]:
        """Tokens that every answer begins with. They need no sampling."""
        return [] if self._after else self._advance([])

    def accept(self, token: int) -> list[int]:
        """Take a sampled token; returns what to append to the answer: it, and what is forced to follow.

        When the answer could not end any more within the budget, returns its shortest ending instead
        and `is_closed`.
        """
        if self._after:
            return self._accept_before(token)
        if token in self.vocabulary.end_ids:
            self.is_done = True
            return [token]
        self._num_until_check -= 1
        if self._num_until_check > 0:
            return self._advance([token])
        return self._accept_within_budget(token)

    def replay(self, tokens: Sequence[int]) -> None:
        """Follow an answer that has been given already, in part. Raises ConstraintError where it breaks off."""
        for token in tokens:
            if self._after:
                self._read_before(token)
                continue
            self._mask()  # the effort that a token may take is counted from here
            if not self._matcher.try_consume_tokens([token]):
                raise ConstraintError("The answer so far does not fit the schema, so it cannot be continued.")
            self._remember([token])
        self._num_until_check = 0
        self.is_done = self._matcher.is_stopped()

    def _accept_before(self, token: int) -> list[int]:
        """Take a token of what comes before the document; end that in time for the document."""
        marker = self.vocabulary.tokenizer.tokenize_str(self._after.decode(), parse_special=True)
        taken = [token]
        self._read_before(token)
        if self._after and self._remaining <= self._grammar.min_tokens + self._margin + len(marker):
            taken += marker
            for each in marker:
                self._read_before(each)
            self._after = b""
        if not self._after:
            self._num_until_check = 0
            taken += self._advance([])
        return taken

    def _read_before(self, token: int) -> None:
        self._remaining -= 1
        self._tail = (self._tail + self.vocabulary.pieces[token])[-4 * len(self._after) - 64 :]
        if self._after in self._tail:
            self._after = b""

    def close(self) -> list[int]:
        """End the answer now, in as few tokens as were found."""
        ending = self._ending if self._ending is not None else self._find_ending(max(0, self._remaining))
        if ending is None:
            raise ConstraintError("The answer cannot be ended within its budget.", "truncated")
        self._matcher.consume_tokens(ending)
        self._remember(ending)
        self.is_done = self.is_closed = True
        return ending

    def _advance(self, tokens: list[int]) -> list[int]:
        if tokens and not self._matcher.consume_tokens(tokens):
            raise ConstraintError(f"The token {tokens[0]} was not allowed: {_reason(self._matcher)}.")
        forced = [] if self._matcher.is_stopped() else self._matcher.compute_ff_tokens()
        if forced:
            self._matcher.consume_tokens(forced)
        self._remember([*tokens, *forced])
        self._num_until_check -= len(forced)
        self.is_done = self._matcher.is_stopped()
        return [*tokens, *forced]

    def _remember(self, tokens: Sequence[int]) -> None:
        self._remaining -= len(tokens)
        for token in tokens:
            self._state.push(self.vocabulary.pieces[token])
        ending = self._ending
        self._ending = ending[len(tokens) :] if ending is not None and ending[: len(tokens)] == [*tokens] else None

    def _accept_within_budget(self, token: int) -> list[int]:
        """Take the token only if the answer can still end after it."""
        if self._ending is None:
            self._ending = self._find_ending(self._remaining)
        before = (self._matcher.deep_copy(), self._state.copy(), self._remaining, self._ending)
        taken = self._advance([token])
        if self.is_done:
            if self._remaining >= 0:
                return taken
        else:
            if self._ending is None:
                self._ending = self._find_ending(self._remaining)
            if self._ending is not None and len(self._ending) <= self._remaining:
                self._num_until_check = self._patience(len(self._ending))
                return taken
        self._matcher, self._state, self._remaining, self._ending = before
        self.is_done = False
        return self.close()

    def _patience(self, num_ending: int) -> int:
        """For how many tokens the ending needs no second look."""
        return max(1, (self._remaining - num_ending - self._margin) // (1 + GROWTH))

    def _find_ending(self, limit: int) -> list[int] | None:
        ending = self._last_ending
        if len(ending) > limit or not self._ends_with(ending):
            found = _Ending(self._grammar, self._matcher, self._state).find(limit, EFFORT)
            if found is None:
                return None
            ending = self._last_ending = found
        return list(ending)

    def _ends_with(self, ending: list[int]) -> bool:
        """Within a text or a list the ending that was found a token ago mostly still fits."""
        matcher = self._matcher.deep_copy()
        return bool(ending) and matcher.try_consume_tokens(ending) == len(ending) and matcher.is_accepting()


_TABLE = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") == 1, 0.0, -np.inf
).astype(np.float32)


def _reason(matcher: LLMatcher) -> str:
    text = matcher.get_error().partition("\n")[0].strip().rstrip(".")
    return text[:200] or matcher.stop_reason()


class _Ending:
    """Looks for a short way to the end of a document: no model, only what the grammar allows."""

    def __init__(self, grammar: Grammar, matcher: LLMatcher, state: _TextState) -> None:
        self._vocabulary = grammar.vocabulary
        self._examples = grammar.examples
        self._from = matcher
        self._from_state = state
        self._words = np.zeros(self._vocabulary.num_words, np.int32)

    def find(self, limit: int, effort: int) -> list[int] | None:
        """Tokens that end the document, at most `limit`, found in `effort` steps; None if none were."""
        self._effort = effort
        for seed in range(WALKS):
            self._boldness = 1 - 0.05 * seed
            path = self._walk(limit, random.Random(seed))
            if path is not None or self._effort <= 0:
                return path
        return None

    def _walk(self, limit: int, chance: random.Random) -> list[int] | None:
        matcher, state = self._from.deep_copy(), self._from_state.copy()
        path: list[int] = []
        while not matcher.is_accepting():
            self._effort -= 1
            step = self._step(matcher, state, chance)
            if not step or len(path) + len(step) > limit or self._effort < 0:
                return None
            path += step
            for token in step:
                state.push(self._vocabulary.pieces[token])
        return path

    def _step(self, matcher: LLMatcher, state: _TextState, chance: random.Random) -> list[int]:
        """Takes the next tokens and returns them; none when there is no way on."""
        step = matcher.compute_ff_tokens()
        if not step:
            matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
            if matcher.is_error():
                return []
            if state.in_string:
                quotes = self._allowed(self._vocabulary.quotes)
                if not len(quotes) and (rest := self._rest_of_example(matcher, state)):
                    return rest
                step = [int(quotes[0])] if len(quotes) else self._character(chance)
            else:
                step = self._structure(state, chance)
        return step if step and matcher.consume_tokens(step) else []

    def _rest_of_example(self, matcher: LLMatcher, state: _TextState) -> list[int]:
        """End a text as an example ends: from the same position on, or with the whole of it."""
        for example in self._examples:
            for rest in dict.fromkeys((example[state.length :], example)):
                tokens = self._vocabulary.tokenizer.greedy_tokenize(rest.decode("utf-8", "ignore")) if rest else []
                if tokens:
                    taken = matcher.try_consume_tokens(tokens)
                    if taken == len(tokens):
                        return tokens
                    if taken:
                        matcher.rollback(taken)
        return []

    def _character(self, chance: random.Random) -> list[int]:
        letters, marks = self._allowed(self._vocabulary.letters), self._allowed(self._vocabulary.marks)
        if len(marks) and (not len(letters) or chance.random() < 0.4):
            return [int(chance.choice(marks))]
        return [int(chance.choice(letters))] if len(letters) else self._anything(chance)

    def _structure(self, state: _TextState, chance: random.Random) -> list[int]:
        if state.last in b"0123456789" and len(ends := self._allowed(self._vocabulary.after_number)):
            return [int(ends[0])]
        if state.last in b"0123456789.-" and len(digits := self._allowed(self._vocabulary.digits)):
            return [int(chance.choice(digits))]
        structure = self._allowed(self._vocabulary.structure)
        if not len(structure):
            return self._anything(chance)
        # What is short at first may lead nowhere: 0 where more than 0 is asked for.
        is_first_walk = chance.random() < self._boldness
        return [int(structure[0] if is_first_walk else chance.choice(structure))]

    def _anything(self, chance: random.Random) -> list[int]:
        allowed = np.flatnonzero(np.unpackbits(self._words.view(np.uint8), bitorder="little"))
        texts = [int(id) for id in allowed if int(id) not in self._vocabulary.end_ids]
        return [chance.choice(texts)] if texts else []

    def _allowed(self, ids: Ids) -> Ids:
        chosen: Ids = ids[(self._words[ids >> 5] >> (ids & 31) & 1).astype(bool)]
        return chosen
