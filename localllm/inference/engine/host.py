"""The supervisor of one worker process, and its async client. Lives in the web process's event loop.

It starts the worker, restarts it with back-off when it crashes, hangs or is killed, and turns a request
into an async iterator of events; closing that iterator cancels the request. It never touches llama.cpp.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Literal

from localllm.inference.engine import spinning, wire
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import EngineDied, ModelRefused, ProviderError
from localllm.inference.model_file import longest_read_s
from localllm.inference.types import ChatRequest, Embedding, Event, Finished, Loading, Message, ModelInfo, Speed

log = logging.getLogger(__name__)

Answer = Event | wire.InquiryAnswer
Inbox = asyncio.Queue[Answer | Exception]  # of one request; an exception ends it
State = Literal["stopped", "loading", "ready", "restarting", "refused"]

PING_EVERY_S = 5.0
SILENCE_LIMIT_S = 30.0  # no Pong for so long: the process is stopped or its interpreter is stuck
# No sign for so long while it loads: it hangs. A file's pages may all be read between two of them, so the time that a
# slow disk takes for that comes on top.
LOADING_SILENCE_LIMIT_S = 180.0
STEP_LIMIT_S = 180.0  # one batch takes so long: llama.cpp hangs
RENDER_LIMIT_S = 2.0  # a chat template takes so long: it will not end
FIRST_BACK_OFF_S, LAST_BACK_OFF_S = 0.2, 30.0
STEADY_AFTER_S = 60.0  # a worker that lived so long was no crash loop
BUFFER_BYTES = 64 << 10  # of what is read from a worker at once
TEXTS_PER_MESSAGE = 64  # of one who wants embeddings; others come in between
MAX_FAILED_LOADS = 3  # workers in a row that ended before they were ready: this model will not load
PROJECT = Path(__file__).parents[3]
# What a child that runs llama.cpp may see of the environment. Anything else may be a secret.
CHILD_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
CHILD_PREFIXES = ("OMP_", "GOMP_", "GGML_", "LLAMA_")


class EngineHost:
    """One model file, served by a worker process for as long as the host runs."""

    def __init__(self, path: Path, settings: EngineSettings) -> None:
        self.path = path
        self.settings = settings
        self.state: State = "stopped"
        self.fraction = 0.0  # of loading
        self.info: ModelInfo | None = None
        self.error = ""  # why the last worker ended
        self.pid: int | None = None
        self.num_restarts = 0
        self.ready_at: float | None = None  # seconds since 1970
        self.load_s = 0.0
        self._ids = itertools.count(1)
        self._pending: dict[int, Inbox] = {}
        self._rendering: dict[int, float] = {}  # whose prompts, and since when
        self._changed = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._started_at = self._last_heard = 0.0  # of this worker
        self._was_ready = False
        self._stopped_because = ""
        self._measurement: asyncio.Future[Speed] | None = None

    @property
    def num_requests(self) -> int:
        return len(self._pending)

    def start(self) -> None:
        """Begin to load. From the main thread: the worker dies with the thread that started it."""
        if self._supervisor is None:
            self._set_state("loading")
            self._supervisor = asyncio.create_task(self._supervise(), name=f"host {self.path.name}")

    async def stop(self, why: str = "") -> None:
        """End the worker; requests under way fail as if it had died, those that wait for it with `why`."""
        self._stopped_because = why
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        self._set_state("stopped")

    def refuse(self, reason: str) -> None:
        """Whoever asks hears that it will not be loaded."""
        self.error = reason
        self._set_state("refused")

    async def wait_until_ready(self) -> ModelInfo:
        """Wait for the model to be loaded. Raises ModelRefused when it never will be."""
        async for _ in self.loading():
            pass
        assert self.info is not None
        return self.info

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Event]:
        """Answer one request. Raises ProviderError, or EngineDied when the worker ended under it."""
        async for event in self.loading():
            yield event
        if self.info and self.info.is_embedding:
            raise ProviderError(
                f"{self.path.name} makes embeddings of texts and writes no answers. Choose another model.",
                permanent=True,
            )
        async with self._open() as (id, inbox):
            self._send(wire.Submit(id, request))
            while True:
                item = await inbox.get()
                if isinstance(item, Exception):
                    raise item
                assert not isinstance(item, wire.InquiryAnswer)
                if isinstance(item, Finished):
                    del self._pending[id]  # before the yield: nothing is left to cancel
                yield item
                if isinstance(item, Finished):
                    return

    async def count(self, messages: tuple[Message, ...]) -> int:
        """Exact number of prompt tokens of `messages`, chat template included."""
        answer = await self._inquire(lambda id: wire.Count(id, messages))
        assert isinstance(answer, wire.Counted)
        return answer.num_tokens

    async def count_texts(self, texts: Sequence[str]) -> list[int]:
        """Exact number of tokens of each text by itself."""
        answer = await self._inquire(lambda id: wire.CountTexts(id, tuple(texts)))
        assert isinstance(answer, wire.CountedTexts)
        return list(answer.num_tokens)

    async def preview(self, messages: tuple[Message, ...]) -> tuple[str, int]:
        """`messages` as the model would see them, chat template included, and the exact number of their tokens."""
        answer = await self._inquire(lambda id: wire.Preview(id, messages))
        assert isinstance(answer, wire.Previewed)
        return answer.text, answer.num_tokens

    async def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """A vector for each text, in their order. Raises ProviderError; ContextOverflow for one that is too long."""
        info = await self.wait_until_ready()
        if not info.is_embedding:
            raise ProviderError(
                f"{self.path.name} writes answers and makes no embeddings of texts. Choose an embedding model.",
                permanent=True,
            )
        embeddings: list[Embedding] = []
        for start in range(0, len(texts), TEXTS_PER_MESSAGE):
            embeddings += await self._embed(tuple(texts[start : start + TEXTS_PER_MESSAGE]))
        return embeddings

    async def _embed(self, texts: tuple[str, ...]) -> tuple[Embedding, ...]:
        answer = await self._inquire(lambda id: wire.Embed(id, texts))
        assert isinstance(answer, wire.Embedded)
        return answer.embeddings

    async def _inquire(self, question: Callable[[int], wire.Inquiry]) -> Answer:
        """The one answer to a question that generates nothing."""
        await self.wait_until_ready()
        async with self._open() as (id, inbox):
            self._send(question(id))
            answer = await inbox.get()
            if isinstance(answer, Exception):
                raise answer
            self._pending.pop(id, None)  # nothing is left to cancel
            return answer

    async def measure(self) -> Speed:
        """Measured as soon as no request is under way; then it has computed a full batch. Raises EngineDied."""
        await self.wait_until_ready()
        if self._measurement is None:
            self._measurement = asyncio.get_running_loop().create_future()
            self._send(wire.Measure())
        return await asyncio.shield(self._measurement)

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[tuple[int, Inbox]]:
        id, inbox = next(self._ids), Inbox()
        self._pending[id] = inbox
        try:
            yield id, inbox
        finally:
            if self._pending.pop(id, None) is not None:
                self._send(wire.Cancel(id))

    async def loading(self) -> AsyncIterator[Loading]:
        """How far it is, until it is ready. Raises ModelRefused, or EngineDied when it was stopped."""
        while self.state != "ready":
            if self.state == "refused":
                raise ModelRefused(self.error)
            if self.state == "stopped":
                if self._stopped_because:
                    raise ProviderError(self._stopped_because)
                raise EngineDied(f"{self.path.name} is not loaded.")
            yield Loading(self.fraction)
            await self._changed.wait()

    @property
    def _is_refused(self) -> bool:
        return self.state == "refused"

    def _set_state(self, state: State) -> None:
        self.state = state
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # Supervision

    async def _supervise(self) -> None:
        back_off_s = FIRST_BACK_OFF_S
        num_failed_loads = 0
        while not self._is_refused:
            started = time.monotonic()
            try:
                await self._run_worker()
            except OSError as exc:  # too many processes or files, or no memory for one more
                self._was_ready, self.error = False, f"it could not be started: {exc}."
            if time.monotonic() - started > STEADY_AFTER_S:
                back_off_s = FIRST_BACK_OFF_S
            num_failed_loads = 0 if self._was_ready else num_failed_loads + 1
            if num_failed_loads == MAX_FAILED_LOADS:
                self._set_state("refused")
            if not self._is_refused:
                log.warning("The worker of %s ended: %s Restart in %.1f s.", self.path.name, self.error, back_off_s)
                self._set_state("restarting")
                await asyncio.sleep(back_off_s)
                back_off_s = min(2 * back_off_s, LAST_BACK_OFF_S)
                self.num_restarts += 1

    async def _run_worker(self) -> None:
        """One life of a worker, from its start to its end."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = await _start(theirs)
            try:
                await self._talk(process, ours)
            finally:
                _kill(process)
                code = await process.wait()
                self.pid = None
                self._bury(code)

    async def _talk(self, process: asyncio.subprocess.Process, connection: socket.socket) -> None:
        """Until the connection is over."""
        self.pid, self.fraction, self.error, self._was_ready = process.pid, 0.0, "", False
        self._rendering.clear()
        self._last_heard = self._started_at = time.monotonic()
        loop = asyncio.get_running_loop()
        self._transport, protocol = await loop.create_connection(lambda: _Connection(self._receive), sock=connection)
        watchdog = asyncio.create_task(self._watch(process))
        try:
            self._send(wire.Load(str(self.path), self.settings))
            await protocol.is_over
        finally:
            watchdog.cancel()
            self._transport.abort()
            self._transport = None

    def _receive(self, message: wire.FromWorker) -> None:
        self._last_heard = time.monotonic()
        match message:
            case wire.Told(id=id, event=event):
                self._deliver(id, event)
            case wire.Progress(fraction=fraction):
                self.fraction = fraction
                self._set_state("loading")
            case wire.Ready(info=info):
                self.info, self._was_ready = info, True
                self.ready_at, self.load_s = time.time(), time.monotonic() - self._started_at
                self._set_state("ready")
            case wire.Refused(reason=reason):
                self.refuse(reason)
            case wire.Rendering(id=id):
                self._rendering[id] = time.monotonic()
            case wire.Rendered(id=id):
                self._rendering.pop(id, None)
            case wire.Counted(id=id) | wire.CountedTexts(id=id) | wire.Previewed(id=id) | wire.Embedded(id=id):
                self._deliver(id, message)
            case wire.Failed(id=id, error=error):
                self._end(id, error)
            case wire.Measured(speed=speed):
                if self._measurement is not None:
                    self._measurement.set_result(speed)
                    self._measurement = None
            case wire.Pong(step_s=step_s):
                if step_s is not None and step_s > STEP_LIMIT_S:
                    self._give_up(f"it has computed one batch for {step_s:.0f} s.")

    def _deliver(self, id: int, item: Answer | Exception) -> None:
        if inbox := self._pending.get(id):
            inbox.put_nowait(item)

    def _end(self, id: int, error: ProviderError) -> None:
        if inbox := self._pending.pop(id, None):
            inbox.put_nowait(error)

    def _send(self, message: wire.ToWorker) -> None:
        if self._transport is not None:
            self._transport.write(wire.frame(message))

    # When it goes wrong

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Kill a worker that does not answer, that hangs while it loads, or that is stuck in a chat template."""
        read_s = longest_read_s(self.path)
        next_ping = time.monotonic() + PING_EVERY_S
        while True:
            await asyncio.sleep(RENDER_LIMIT_S / 8)
            now = time.monotonic()
            if now >= next_ping:
                next_ping = now + PING_EVERY_S
                if self.state == "ready":
                    self._send(wire.Ping())
            silence_s = now - self._last_heard
            if self.state == "ready" and silence_s > SILENCE_LIMIT_S:
                self._give_up(f"it has not answered for {SILENCE_LIMIT_S:.0f} s.")
            elif self.state in ("loading", "restarting") and silence_s > LOADING_SILENCE_LIMIT_S + read_s:
                self._give_up(f"it has given no sign for {silence_s:.0f} s while it was loading.")
            for id in [id for id, since in self._rendering.items() if now - since > RENDER_LIMIT_S]:
                self._end(
                    id,
                    ProviderError(
                        f"The chat template of this model took over {RENDER_LIMIT_S:.0f} s for this "
                        "conversation and was stopped. Send something else, or choose another model.",
                        permanent=True,
                    ),
                )
                self._give_up("its chat template did not end.")

    def _give_up(self, why: str) -> None:
        self.error = why
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)

    def _bury(self, code: int) -> None:
        """Tell every reader that the worker is gone."""
        if self.state == "refused":
            error: Exception = ModelRefused(self.error)
        else:
            self.error = self.error or _how_it_ended(code)
            error = EngineDied(f"The engine stopped while it was answering: {self.error}")
        if self._measurement is not None:
            self._measurement.set_exception(EngineDied("The engine stopped before it was measured."))
            self._measurement.exception()  # whoever waited for it may be gone
            self._measurement = None
        pending, self._pending = self._pending, {}
        for inbox in pending.values():
            inbox.put_nowait(error)


class _Connection(asyncio.BufferedProtocol):
    """The worker's end of the talk, message by message. A stream reader would cost a turn of the loop for each.

    It reads into a buffer of its own: otherwise asyncio takes fresh memory of 256 KiB for each few bytes.
    """

    def __init__(self, receive: Callable[[wire.FromWorker], None]) -> None:
        self.is_over = asyncio.get_running_loop().create_future()
        self._receive = receive
        self._unframer = wire.Unframer()
        self._buffer = memoryview(bytearray(BUFFER_BYTES))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        for body in self._unframer.feed(self._buffer[:nbytes]):
            self._receive(wire.from_worker.decode(body))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_over.done():
            self.is_over.set_result(None)


async def _start(connection: socket.socket) -> asyncio.subprocess.Process:
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "localllm.inference.engine.worker", str(connection.fileno()), str(os.getpid())),
            pass_fds=[connection.fileno()],
            env=child_environment(),
            cwd=PROJECT,
            stdin=asyncio.subprocess.DEVNULL,
            process_group=0,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:  # it must not be left behind
        process = await starting
        _kill(process)
        await process.wait()
        raise


def child_environment() -> dict[str, str]:
    """The environment of a child that runs llama.cpp."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in CHILD_ENVIRONMENT or name.startswith(CHILD_PREFIXES)
    }
    if not any(name.startswith(("OMP_", "GOMP_")) for name in kept):
        kept |= spinning.ENVIRONMENT
    # Without the last one ggml may start a debugger when an assertion fails.
    return {**kept, "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1", "GGML_NO_BACKTRACE": "1"}


def _kill(process: asyncio.subprocess.Process) -> None:
    # Not process.kill(): it polls, which reaps the child behind the back of asyncio's watcher.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"it ended with code {code}."
    try:
        return f"it was killed by {signal.Signals(-code).name}."
    except ValueError:
        return f"it was killed by signal {-code}."
