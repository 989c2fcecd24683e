"""Texts in, vectors out: what the engine is to answers, for a model that makes embeddings.

One thread owns the runner. Texts are computed in the order they came, as many in a batch as fit, whoever asked
for them. It knows nothing of processes and sockets.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from localllm.inference.engine.runner import TEXTS_PER_BATCH, Interrupted, Runner
from localllm.inference.engine.self_test import QUIET_S
from localllm.inference.engine.spinning import Spinning
from localllm.inference.errors import ProviderError
from localllm.inference.types import Embedding, Speed


@dataclass(eq=False, slots=True)
class EmbedRequest:
    """Token ids of some texts, none longer than the window; `emit` gets all vectors at once, or an error."""

    texts: list[list[int]]
    emit: Callable[[tuple[Embedding, ...] | ProviderError], None]
    cancelled: bool = False
    done: list[Embedding] = field(default_factory=list)

    @property
    def num_left(self) -> int:
        return len(self.texts) - len(self.done)


class Embedder:
    def __init__(self, runner: Runner, *, flush: Callable[[], None] = lambda: None) -> None:
        """`flush` is called when what was emitted so far should be sent."""
        self.step_started_at: float | None = None  # monotonic; None between steps
        self._runner = runner
        self._flush = flush
        self._inbox: queue.SimpleQueue[EmbedRequest | None] = queue.SimpleQueue()
        self._requests: deque[EmbedRequest] = deque()
        self._spinning = Spinning(runner.num_threads)
        self._tell_speed: Callable[[Speed], None] | None = None  # a self-test is due

    def submit(self, request: EmbedRequest) -> None:
        """From any thread."""
        self._inbox.put(request)

    def measure(self, tell: Callable[[Speed], None]) -> None:
        """Test yourself as soon as there has been nothing else to do for a while. From any thread."""
        self._tell_speed = tell
        self._inbox.put(None)

    # Everything below runs in the engine thread

    def run_forever(self) -> None:
        while True:
            self._receive()
            if self._tell_speed and not self._requests:
                self._test(self._tell_speed)
            self.step()
            self._flush()

    def warm_up(self) -> None:
        """Compute one text, so that the first user does not wait for pages and buffers."""
        self._runner.embed([self._runner.tokenize("Hello", special=False, is_whole=True)])

    def _test(self, tell: Callable[[Speed], None]) -> None:
        """Fill the window once. Whoever asks for something meanwhile goes first; then it is done anew."""
        words = self._runner.tokenize("Hello, how are you?", special=False)
        text = (words * self._runner.window)[: self._runner.window]
        speed = Speed(0.0, 0.0)
        self.step_started_at = started = time.monotonic()
        try:
            with self._runner.interruptible(lambda: not self._inbox.empty()):
                self._runner.embed([text])
            speed = Speed(len(text) / (time.monotonic() - started), 0.0)
        except Interrupted:
            return
        except ProviderError:  # whoever asks next is told the same
            pass
        finally:
            self.step_started_at = None
        self._tell_speed = None
        tell(speed)

    def _receive(self) -> None:
        """Take in what has arrived; sleep only when there is nothing to compute, and not long when a test is due."""
        while True:
            is_idle = not self._requests
            try:
                request = self._inbox.get(block=is_idle, timeout=QUIET_S if self._tell_speed else None)
            except queue.Empty:
                return
            if is_idle:
                self._spinning.rest()
            if request is not None:
                self._requests.append(request)

    def step(self) -> None:
        """Compute one batch, and answer those whose texts are all done."""
        self._requests = deque(request for request in self._requests if not request.cancelled)
        shares = self._next_batch()
        if not shares:
            return
        self.step_started_at = time.monotonic()
        texts = [text for request, count in shares for text in request.texts[len(request.done) :][:count]]
        try:
            vectors = iter(self._runner.embed(texts))
        except ProviderError as exc:
            for request, _ in shares:
                self._requests.remove(request)
                request.emit(exc)
            return
        finally:
            self.step_started_at = None
            self._spinning.observe()
        for request, count in shares:
            for text in request.texts[len(request.done) :][:count]:
                request.done.append(Embedding(next(vectors), len(text)))
            if not request.num_left:
                self._requests.remove(request)
                request.emit(tuple(request.done))

    def _next_batch(self) -> list[tuple[EmbedRequest, int]]:
        """Whose texts come next, and how many of each, until one does not fit any more."""
        shares: list[tuple[EmbedRequest, int]] = []
        room, num_texts = self._runner.window, TEXTS_PER_BATCH
        for request in self._requests:
            count = 0
            for text in request.texts[len(request.done) :]:
                room, num_texts = room - len(text), num_texts - 1
                if room < 0 or num_texts < 0:
                    break
                count += 1
            if count:
                shares.append((request, count))
            if count < request.num_left:
                break
        return shares
