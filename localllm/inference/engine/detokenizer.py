"""Token bytes in, showable text out: holds back half a UTF-8 character, half a tag and half a stop string."""

from __future__ import annotations

import codecs

from localllm.inference.reasoning import ReasoningParser


class Detokenizer:
    """Collects the bytes of one answer, and its reasoning apart when there is a parser for it.

    Nothing of the answer that might still become part of a stop string leaves `push`; the stop string
    itself and what follows it never leave at all. Reasoning is not searched for stop strings.
    """

    def __init__(self, stop: tuple[str, ...] = (), parser: ReasoningParser | None = None) -> None:
        self.is_stopped = False
        self._stop = tuple(s for s in stop if s)
        self._parser = parser
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    @property
    def is_answering(self) -> bool | None:
        """Is it the answer that comes, not reasoning? None while that is not known."""
        return self._parser.is_answering if self._parser else True

    def push(self, piece: bytes) -> tuple[str, str]:
        """Add one token's bytes; return what may be shown now, as reasoning and as answer."""
        text = self._decoder.decode(piece)
        reasoning, answer = self._parser.push(text) if self._parser else ("", text)
        self._held += answer
        return reasoning, self._release(self._num_undecided())

    def flush(self) -> tuple[str, str]:
        """The answer is over: return what was held back. A broken last character becomes U+FFFD."""
        if self.is_stopped:
            return "", ""
        reasoning, answer = "", self._decoder.decode(b"", final=True)
        if self._parser:
            (reasoning, answer), rest = self._parser.push(answer), self._parser.flush()
            reasoning, answer = reasoning + rest[0], answer + rest[1]
        self._held += answer
        return reasoning, self._release(0)

    def _release(self, num_undecided: int) -> str:
        found = [at for at in (self._held.find(s) for s in self._stop) if at >= 0]
        if found:
            self.is_stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        cut = len(self._held) - num_undecided
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def _num_undecided(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(s.startswith(self._held[-length:]) for s in self._stop):
                return length
        return 0
