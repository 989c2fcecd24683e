"""Patience with wrong passwords: a few are free, then each makes the next wait longer. In memory only.

Counted per account and address together, so that a stranger cannot lock the owner out; and, more
leniently, per account and per address alone, against guesses from many addresses or at many accounts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from django.conf import settings
from django.http import HttpRequest

MAX_KEYS = 10_000
FORGOTTEN_AFTER_S = 900.0


@dataclass(frozen=True, slots=True)
class Patience:
    """After `num_free` failures one waits 1 s, then 2, 4 … up to `longest_s`."""

    num_free: int
    longest_s: float

    def delay_s(self, num_failures: int) -> float:
        over = num_failures - self.num_free
        return min(2.0 ** min(over, 30), self.longest_s) if over >= 0 else 0.0


PAIR = Patience(5, FORGOTTEN_AFTER_S)
ACCOUNT = Patience(20, 30)
ADDRESS = Patience(50, 60)

Key = tuple[str, str]


class LoginThrottle:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: dict[Key, tuple[int, float]] = {}  # number and time of the last; oldest key first
        self._lock = threading.Lock()

    def attempt(self, account: str, address: str) -> float:
        """Seconds to wait before another try. 0 lets this one through; it counts as failed until `succeed`."""
        keys = _keys(account, address)
        with self._lock:
            now = self._clock()
            wait_s = max(self._wait_s(key, patience, now) for key, patience in keys.items())
            if wait_s <= 0:
                for key in keys:
                    self._failures[key] = (self._num_failures(key, now) + 1, now)
                    self._failures[key] = self._failures.pop(key)
                self._forget_oldest()
            return max(0.0, wait_s)

    def succeed(self, account: str, address: str) -> None:
        """Take back what `attempt` counted; all that this address did to this account is forgiven."""
        with self._lock:
            for key, patience in _keys(account, address).items():
                number, at = self._failures.pop(key, (1, 0.0))
                if patience is not PAIR and number > 1:
                    self._failures[key] = (number - 1, at)

    def _num_failures(self, key: Key, now: float) -> int:
        number, at = self._failures.get(key, (0, now))
        return number if now - at < FORGOTTEN_AFTER_S else 0

    def _wait_s(self, key: Key, patience: Patience, now: float) -> float:
        number = self._num_failures(key, now)
        return self._failures[key][1] + patience.delay_s(number) - now if number else 0.0

    def _forget_oldest(self) -> None:
        while len(self._failures) > MAX_KEYS:
            del self._failures[next(iter(self._failures))]


def _keys(account: str, address: str) -> dict[Key, Patience]:
    account = account.strip().casefold()
    return {(account, address): PAIR, (account, ""): ACCOUNT, ("", address): ADDRESS}


def client_address(request: HttpRequest) -> str:
    """Whom the throttle counts. Behind an HTTPS proxy of ours it is what that proxy added last."""
    forwarded = request.headers.get("X-Forwarded-For", "")
    if settings.SESSION_COOKIE_SECURE and forwarded:  # LOCALLLM_HTTPS=1 says that a proxy stands before us
        return forwarded.rpartition(",")[2].strip()
    return str(request.META.get("REMOTE_ADDR", ""))
