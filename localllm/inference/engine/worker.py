"""The worker process: one model, one engine, one socket to the web process, and nothing else.

It holds no database and no secrets, opens no connection, and ends when its socket closes or its parent
dies. Threads: the main thread is the engine's; one reads the socket, one renders and tokenizes.
Started by host.py as `python -m localllm.inference.engine.worker FD`.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

from localllm.inference.engine import wire
from localllm.inference.engine.answer_format import AnswerFormat
from localllm.inference.engine.chat_template import ChatTemplate, Rendered
from localllm.inference.engine.embedder import Embedder, EmbedRequest
from localllm.inference.engine.engine import Engine
from localllm.inference.engine.outbox import Outbox
from localllm.inference.engine.runner import Runner
from localllm.inference.engine.scheduler import common_prefix_len
from localllm.inference.engine.sequence import Emit, Sequence
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import ContextOverflow, InferenceError, ModelRefused, ProviderError
from localllm.inference.types import ChatRequest, Chunk, Embedding, Event, Finished, Message, ModelInfo

PR_SET_PDEATHSIG = 1
UNTRIED_BYTES = 64 << 10  # a text of more is not even tokenized where it cannot fit


class Worker:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._unframer = wire.Unframer()
        self._sending = threading.Lock()
        self._outbox = Outbox(self._send_frames)  # the engine thread's own
        self._requests: queue.SimpleQueue[wire.Submit | wire.Inquiry] = queue.SimpleQueue()
        self._last_read = self._last_prepared = -1  # ids of requests, which ascend
        self._sequences: dict[int, Sequence | EmbedRequest] = {}
        self._cancelled: set[int] = set()  # cancelled before they were tokenized
        self._lock = threading.Lock()
        self._percent_told = -1

    def main(self) -> None:
        load = self._first_message()
        try:
            self._runner = Runner(Path(load.path), load.settings, self._tell_progress)
            info = self._runner.info
            self._max_prompt_bytes = self._runner.window * self._runner.max_piece_bytes
            if info.is_embedding:
                self._embedder = Embedder(self._runner, flush=self._outbox.flush)
                self._loop: Engine | Embedder = self._embedder
            else:
                self._engine = self._loop = self._make_engine(info, load.settings)
        except ModelRefused as exc:
            self._send(wire.Refused(str(exc)))
            return
        self._loop.warm_up()
        _start(self._read, "reader")
        _start(self._prepare, "tokenizer")
        self._send(wire.Ready(info))
        self._loop.run_forever()

    def _make_engine(self, info: ModelInfo, settings: EngineSettings) -> Engine:
        self._template = ChatTemplate(
            info.chat_template, bos=info.bos, eos=info.eos, special_tokens=info.special_tokens
        )
        self._format = AnswerFormat(self._runner, self._template.tags)
        # Most conversations begin alike, and tokenizing takes a millisecond or two for each thousand characters.
        self._tokenize_head = lru_cache(maxsize=64)(partial(self._runner.tokenize, special=True))
        return Engine(
            self._runner,
            max_batch_tokens=settings.n_batch,
            max_waiting=settings.max_waiting,
            flush=self._outbox.flush,
            is_more_coming=lambda: self._last_read > self._last_prepared,
        )

    def _tell_progress(self, fraction: float) -> None:
        percent = int(fraction * 100)
        if percent > self._percent_told:
            self._percent_told = percent
            self._send(wire.Progress(fraction))

    # The socket

    def _first_message(self) -> wire.Load:
        while True:
            for body in self._receive():
                message = wire.to_worker.decode(body)
                assert isinstance(message, wire.Load)
                return message

    def _receive(self) -> list[bytes]:
        try:
            data = self._connection.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            os._exit(0)  # the web process is gone, and with it every reader
        return self._unframer.feed(data)

    def _read(self) -> None:
        while True:
            for body in self._receive():
                match wire.to_worker.decode(body):
                    case wire.Submit() | wire.Count() | wire.CountTexts() | wire.Preview() | wire.Embed() as request:
                        self._last_read = request.id
                        self._requests.put(request)
                    case wire.Cancel(id=id):
                        self._cancel(id)
                    case wire.Measure():
                        self._loop.measure(lambda speed: self._send(wire.Measured(speed)))
                    case wire.Ping():
                        started = self._loop.step_started_at
                        self._send(wire.Pong(None if started is None else time.monotonic() - started))

    def _send(self, message: wire.FromWorker) -> None:
        """From any thread. A thread of its own for writing would take a core from the decoding ones."""
        self._send_frames(wire.frame(message))

    def _send_frames(self, frames: bytes) -> None:
        with self._sending:
            try:
                self._connection.sendall(frames)
            except OSError:
                os._exit(0)

    # Requests

    def _cancel(self, id: int) -> None:
        with self._lock:
            seq = self._sequences.get(id)
            if seq is None:
                if id > self._last_prepared:  # else it is over
                    self._cancelled.add(id)
                return
        if isinstance(seq, EmbedRequest):
            seq.cancelled = True
        else:
            self._engine.cancel(seq)

    def _prepare(self) -> None:
        """Render and tokenize, beside the engine thread, which goes on decoding."""
        while True:
            message = self._requests.get()
            try:
                match message:
                    case wire.Submit(id=id, request=request):
                        self._submit(id, request)
                    case wire.Count(id=id, messages=messages):
                        self._send(wire.Counted(id, self._preview(id, messages)[1]))
                    case wire.CountTexts(id=id, texts=texts):
                        counts = tuple(len(self._runner.tokenize(text, special=False)) for text in texts)
                        self._send(wire.CountedTexts(id, counts))
                    case wire.Preview(id=id, messages=messages):
                        self._send(wire.Previewed(id, *self._preview(id, messages)))
                    case wire.Embed(id=id, texts=texts):
                        self._embed(id, texts)
            except InferenceError as exc:
                self._send(wire.Failed.of(message.id, exc))
            except Exception as exc:  # whatever a prompt does, the next one must be served
                self._send(wire.Failed(message.id, f"The prompt could not be prepared: {exc!r}.", "permanent"))
            with self._lock:
                self._last_prepared = message.id
                self._cancelled.discard(message.id)

    def _preview(self, id: int, messages: tuple[Message, ...]) -> tuple[str, int]:
        """The prompt of a conversation, and how many tokens it has."""
        rendered = self._render(id, ChatRequest(messages=messages))
        return rendered.text, len(self._tokenize(rendered)[0])

    def _submit(self, id: int, request: ChatRequest) -> None:
        rendered = self._render(id, request)
        tokens, num_shared = self._tokenize(rendered)
        seed = request.params.seed
        max_tokens = self._max_tokens(len(tokens), request)
        answer = [request.prefix]
        seq = Sequence(
            tokens=tokens,
            params=request.params,
            seed=int.from_bytes(os.urandom(4), "little") if seed is None else seed,
            max_tokens=max_tokens,
            emit=self._teller(id, answer),
            next_prompt=lambda: self._next_prompt(id, request, "".join(answer)),
            was_accepted=request.was_accepted,
            owner=request.owner,
            num_shared=num_shared,
            constraint=self._format.constraint(request, max_tokens, opens_reasoning=rendered.opens_reasoning),
            parser=self._format.parser(request, opens_reasoning=rendered.opens_reasoning),
        )
        self._remember(id, seq)
        self._engine.submit(seq)

    def _embed(self, id: int, texts: tuple[str, ...]) -> None:
        request = EmbedRequest([self._tokenize_whole(text) for text in texts], self._embedding_teller(id))
        self._remember(id, request)
        self._embedder.submit(request)

    def _tokenize_whole(self, text: str) -> list[int]:
        num_bytes, window = len(text.encode()), self._runner.window
        size = f"{num_bytes} bytes"
        if num_bytes <= max(self._max_prompt_bytes, UNTRIED_BYTES):
            tokens = self._runner.tokenize(text, special=False, is_whole=True)
            if 0 < len(tokens) <= window:
                return tokens
            size = f"{len(tokens)} tokens"
        raise ContextOverflow(
            f"A text has {size}, but this model reads from 1 to {window} tokens at once. Cut it into pieces."
        )

    def _remember(self, id: int, seq: Sequence | EmbedRequest) -> None:
        with self._lock:
            self._last_prepared = id
            self._sequences[id] = seq
            if id in self._cancelled:
                self._cancelled.discard(id)
                seq.cancelled = True

    def _render(self, id: int, request: ChatRequest) -> Rendered:
        texts = (*(message.content for message in request.messages), request.prefix, request.reasoning)
        num_bytes = sum(len(text.encode()) for text in texts)
        if num_bytes > self._max_prompt_bytes:
            raise self._too_long(f"of {num_bytes} bytes")
        with self._rendering(id):
            return self._template.render(request.messages, prefix=request.prefix, reasoning=request.reasoning)

    @contextmanager
    def _rendering(self, id: int) -> Iterator[None]:
        """Told to the web process, which ends a worker that is stuck in a template."""
        self._send(wire.Rendering(id))
        try:
            yield
        finally:
            self._send(wire.Rendered(id))

    def _next_prompt(self, id: int, request: ChatRequest, answer: str) -> list[int]:
        """Token ids that the prompt of the next turn begins with."""
        with self._rendering(id):
            rendered = self._template.before_next((*request.messages, Message("assistant", answer)))
        return self._tokenize(rendered)[0]

    def _tokenize(self, rendered: Rendered) -> tuple[list[int], int]:
        """The prompt's token ids, and how many of them come before the first user message."""
        tokens = [self._runner.bos_token] if self._runner.adds_bos and not rendered.has_bos else []
        num_bos = len(tokens)
        for text, is_trusted in rendered.segments:
            tokens += self._runner.tokenize(text, special=is_trusted)
        head = self._tokenize_head(rendered.head) if rendered.head else []
        # The head's last token may have merged with what follows it: count only those that are equal.
        return tokens, num_bos + common_prefix_len(head, tokens[num_bos:])

    def _max_tokens(self, num_prompt_tokens: int, request: ChatRequest) -> int:
        wanted, room = request.params.max_tokens, self._runner.window - num_prompt_tokens
        if room < 1:
            raise self._too_long(f"{num_prompt_tokens} tokens long")
        if wanted is not None and wanted > room:
            # An answer under way was granted its tokens when it began; what is left of the window is left.
            if request.params.clips_max_tokens or request.prefix or request.reasoning:
                return room
            raise ContextOverflow(
                f"The prompt has {num_prompt_tokens} tokens and max_tokens is {wanted}, but the context of this "
                f"model holds {self._runner.window}. Ask for at most {room} tokens, or shorten the prompt."
            )
        return room if wanted is None else wanted

    def _too_long(self, size: str) -> ContextOverflow:
        return ContextOverflow(
            f"The conversation is {size}, but the context of this model holds {self._runner.window} tokens "
            "with the answer. Shorten the message, begin a new chat, or choose a model with a larger context."
        )

    def _teller(self, id: int, answer: list[str]) -> Emit:
        """Sends the events of a request, and collects the pieces of its answer."""

        def tell(event: Event | ProviderError) -> None:
            self._outbox.put(wire.Failed.of(id, event) if isinstance(event, ProviderError) else wire.Told(id, event))
            if isinstance(event, Chunk):
                answer.append(event.text)
            if isinstance(event, ProviderError | Finished):
                self._forget(id)

        return tell

    def _embedding_teller(self, id: int) -> Callable[[tuple[Embedding, ...] | ProviderError], None]:
        def tell(answer: tuple[Embedding, ...] | ProviderError) -> None:
            self._outbox.put(
                wire.Failed.of(id, answer) if isinstance(answer, ProviderError) else wire.Embedded(id, answer)
            )
            self._forget(id)

        return tell

    def _forget(self, id: int) -> None:
        with self._lock:
            self._sequences.pop(id, None)


def _start(target: Callable[[], None], name: str) -> None:
    threading.Thread(target=target, name=name, daemon=True).start()


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent's thread ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(0)  # it died before we could ask


def run(fd: int, parent_pid: int) -> None:
    # Ctrl-C and the service manager's SIGTERM reach the whole group; the web process drains first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent(parent_pid)
    Worker(socket.socket(fileno=fd)).main()


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]))
