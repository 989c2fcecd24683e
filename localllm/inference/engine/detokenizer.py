"""Token bytes in, showable text out: holds back half a UTF-8 character and half a stop string."""

from __future__ import annotations

import codecs


class Detokenizer:
    """Collects the bytes of one answer.

    Nothing that might still become part of a stop string leaves `push`; the stop string itself and
    what follows it never leave at all.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self.is_stopped = False
        self._stop = tuple(s for s in stop if s)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, piece: bytes) -> str:
        """Add one token's bytes; return the text that may be shown now."""
        self._held += self._decoder.decode(piece)
        return self._release(self._num_undecided())

    def flush(self) -> str:
        """The answer is over: return what was held back. A broken last character becomes U+FFFD."""
        if self.is_stopped:
            return ""
        self._held += self._decoder.decode(b"", final=True)
        return self._release(0)

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
