"""daphne, hardened: bounded bodies, inboxes and send buffers, deadlines for clients, draining on a signal.

Knows Twisted's loop and what one client may cost; knows nothing of Django or of what the application answers.
It is the only importer of daphne, and overrides hooks of daphne, Twisted and autobahn: tests/test_serve.py is
the gate for a new version of any of them.
"""

# Twisted's and autobahn's methods carry no annotations.
# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

# Installs the asyncio reactor, so it comes before anything of Twisted.
from daphne import server as daphne_server  # type: ignore[import-untyped]  # isort: skip

from autobahn.websocket.types import ConnectionDeny
from daphne.http_protocol import HTTPFactory, WebRequest  # type: ignore[import-untyped]
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol  # type: ignore[import-untyped]
from twisted.internet import reactor as twisted_reactor
from twisted.internet.protocol import connectionDone
from twisted.logger import STDLibLogObserver, globalLogBeginner
from twisted.web import http

Application = Callable[..., Awaitable[None]]
Message = dict[str, Any]

# autobahn lets a server close a socket with 1000 and 3000-4999 only.
CLOSE_NOT_TEXT = 4007
CLOSE_INBOX_FULL = 4008
CLOSE_RESTARTING = 4012

# The last part of draining: sockets shake hands on closing, then the applications left are cancelled.
CLOSING_S = 1.0
CANCELLING_S = 0.5
# A process that has not ended so long after its draining should have is hung, and the kernel ends it.
HUNG_S = 2.0
# How long a refused client may go on sending before it is cut: it reads its 413 only when it has stopped.
LINGER_S = 2.0

logger = logging.getLogger(__name__)
reactor: Any = twisted_reactor


@dataclass(frozen=True)
class Limits:
    """What one client may cost, and how long draining may take. Sizes are bytes."""

    max_body: int = 16 << 20
    max_message: int = 256 << 10  # of a websocket frame, and of the message that frames add up to
    max_inbox: int = 32  # messages of one socket that the application has not taken yet
    max_sockets_per_client: int = 64
    is_behind_proxy: bool = False  # clients are told apart by what it adds to X-Forwarded-For
    send_buffer: int = 256 << 10  # from here on `await send()` waits for the client
    send_stall_s: float = 20.0  # a client that takes nothing for so long is dropped
    receive_s: float = 120.0  # a request must be complete so long after its connection became free
    drain_s: float = 8.0


DEFAULT_LIMITS = Limits()


def serve(
    application: Application,
    *,
    host: str,
    port: int,
    limits: Limits = DEFAULT_LIMITS,
    on_start: Callable[[], Awaitable[None]] | None = None,
    on_ready: Callable[[str], None] | None = None,
    on_too_large: Callable[[str], str | None] = lambda path: None,
    on_drain: Sequence[Callable[[float], Awaitable[None]]] = (),
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return; a second signal ends the process at once.

    Call it from the main thread. `on_start` is awaited on the event loop before the first request is read
    (connections wait in the kernel meanwhile); `on_ready` then gets the URL. `on_too_large` gets the path of
    a request whose body is over the limit, and returns the JSON to refuse it with; None: a plain sentence
    does. At the first signal every hook in `on_drain` is started with the seconds it has, before the port
    closes: its first step is the place where an application notes that it is draining. An address that
    cannot be had is a SystemExit with the reason.
    """
    listener = _listen(host, port)
    server = _Server(application, host=host, limits=limits, on_too_large=on_too_large, on_drain=on_drain)
    server.serve(listener, on_start, on_ready)


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        sys.exit(_why_not_listening(host, port, error))
    listener.setblocking(False)
    return listener


def _why_not_listening(host: str, port: int, error: OSError | OverflowError) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is already in use: stop the program that listens there, or choose another port."
    reason = error.strerror if isinstance(error, OSError) else error
    return (
        f"Cannot listen on {host}, port {port} ({reason}): "
        "choose an address of this machine and a free port from 1024 to 65535."
    )


class _Channel(http.HTTPChannel):
    """One connection: it refuses, times out and feels the client's reading speed.

    It stays the transport's producer after an upgrade to a websocket, so the transport tells it for both
    protocols when the send buffer is full and when it is empty again.
    """

    factory: Any
    transport: Any

    def __init__(self) -> None:
        super().__init__()
        self.writable = asyncio.Event()
        self.writable.set()
        self.is_refused = False
        self._is_websocket = False
        self._stall_check: Any = None
        self._unsent_before = 0

    @property
    def limits(self) -> Limits:
        limits: Limits = self.factory.server.limits
        return limits

    def connectionMade(self) -> None:
        super().connectionMade()
        self.transport.bufferSize = self.limits.send_buffer
        # With a buffer of its own choice, megabytes, the kernel would hide for long that a slow client reads.
        self.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.limits.send_buffer)
        self.factory.server.http_channels.add(self)

    def connectionLost(self, reason: Any = connectionDone) -> None:
        super().connectionLost(reason)
        self.release()

    def release(self) -> None:
        """Let go of everyone who waits for this connection: it is gone."""
        self.factory.server.http_channels.discard(self)
        self.resumeProducing()

    def become_websocket(self) -> None:
        self._is_websocket = True
        self.factory.server.http_channels.discard(self)

    def resetTimeout(self) -> None:
        """Do nothing when data arrives: the timeout is one for the whole request, not for each byte of it."""

    def timeoutConnection(self) -> None:
        if self.writable.is_set():
            super().timeoutConnection()
        else:
            # No next request, because the client still reads its answer: how fast is the stall check's concern.
            self.setTimeout(self.timeOut)

    def checkPersistence(self, request: http.Request, version: bytes) -> bool:
        if self.factory.server.is_draining:
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
            return False
        persistent: bool = super().checkPersistence(request, version)
        return persistent

    def close_when_idle(self) -> None:
        if self.requests:
            self.persistent = False
        else:
            self.loseConnection()

    def refuse_body(self) -> None:
        """Answer 413, then ignore what a client that is still sending sends.

        Closing at once would reset the connection, and many clients would not see the answer.
        """
        self.is_refused = True
        path: Any = self._path
        self.transport.write(_too_large(self.factory.server.on_too_large(path.decode("latin1")), self.limits))
        self.transport.loseWriteConnection()
        reactor.callLater(LINGER_S, self.transport.abortConnection)

    def pauseProducing(self) -> None:
        super().pauseProducing()
        self._unsent_before = max(self._unsent_before, _num_unsent(self.transport))
        if self.writable.is_set():
            self.writable.clear()
            self._check_for_stall_later()
            if self._is_websocket:
                # Else a flood of pings would fill the buffer with pongs.
                self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        super().resumeProducing()
        self._unsent_before = 0
        if not self.writable.is_set():
            self.writable.set()
            self._stall_check.cancel()
            if self._is_websocket:
                self.transport.resumeProducing()

    def _check_for_stall_later(self) -> None:
        self._stall_check = reactor.callLater(self.limits.send_stall_s, self._check_for_stall)

    def _check_for_stall(self) -> None:
        self._check_for_stall_later()
        unsent = _num_unsent(self.transport)
        if unsent < self._unsent_before:
            self._unsent_before = unsent
            return
        peer = self.transport.getPeer()
        logger.warning("Dropped %s: it read nothing for %g s.", peer, self.limits.send_stall_s)
        self.transport.abortConnection()


def _too_large(json: str | None, limits: Limits) -> bytes:
    if json is None:
        kind, body = "text/plain", f"The body is too large: at most {limits.max_body:,} bytes are taken.".encode()
    else:
        kind, body = "application/json", json.encode()
    head = (
        f"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Type: {kind}\r\n"
        f"X-Content-Type-Options: nosniff\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _num_unsent(transport: Any) -> int:
    """Bytes that Twisted has accepted and the kernel has not."""
    unsent: int = len(transport.dataBuffer) - transport.offset + transport._tempDataLen
    return unsent


class _Request(WebRequest):  # type: ignore[misc]
    """One HTTP request, its body bounded before it is kept."""

    def __init__(self, channel: _Channel, queued: object) -> None:
        super().__init__(channel, queued, parsePOSTFormSubmission=False)
        # Twisted takes `channel` away when the response is finished.
        self.connection = channel
        self._num_received = 0

    def gotLength(self, length: int | None) -> None:
        if length is not None and length > self.connection.limits.max_body:
            self.connection.refuse_body()
            self.requestHeaders.removeHeader(b"Expect")
            length = 0
        super().gotLength(length)

    def handleContentChunk(self, data: bytes) -> None:
        if self.connection.is_refused:
            return
        self._num_received += len(data)
        if self._num_received > self.connection.limits.max_body:
            self.connection.refuse_body()
        else:
            super().handleContentChunk(data)

    def process(self) -> None:
        if self.connection.is_refused:
            return
        # daphne would let any client choose the application's root path.
        self.requestHeaders.removeHeader(b"Daphne-Root-Path")
        super().process()

    def handle_exception(self, exception: BaseException) -> None:
        if self._response_started:
            # A second response start would raise and end daphne's reaping for good.
            self.connection.transport.abortConnection()
        else:
            super().handle_exception(exception)


class _WebSocket(WebSocketProtocol):  # type: ignore[misc]
    """One websocket that takes text only, and only as fast as the application takes it."""

    def makeConnection(self, transport: Any) -> None:
        self.server: _Server = self.factory.server_class
        self.connection: _Channel = transport.producer
        self.connection.become_websocket()
        self.client_host = transport.getPeer().host
        super().makeConnection(transport)

    def connectionLost(self, reason: Any) -> None:
        super().connectionLost(reason)
        self.connection.release()

    def onConnect(self, request: Any) -> Any:
        forwarded = request.headers.get("x-forwarded-for", "")
        if self.server.limits.is_behind_proxy and forwarded:
            self.client_host = forwarded.rpartition(",")[2].strip()
        if self.server.num_sockets(self.client_host) >= self.server.limits.max_sockets_per_client:
            raise ConnectionDeny(429, "Too many websockets from this address: close some, then try again.")
        return super().onConnect(request)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.muted:
            return
        if isBinary:
            self.close_with(CLOSE_NOT_TEXT)
        elif self.application_queue.qsize() >= self.server.limits.max_inbox:
            self.close_with(CLOSE_INBOX_FULL)
        else:
            try:
                super().onMessage(payload, isBinary)
            except UnicodeDecodeError:
                self.close_with(CLOSE_NOT_TEXT)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        # A socket refused before it had an application, or reaped after it, is not among the connections.
        if self in self.server.connections:
            super().onClose(wasClean, code, reason)

    def close_with(self, code: int) -> None:
        """Close from this side; the application hears of it now and gets no more messages."""
        self.muted = True
        self.application_queue.put_nowait({"type": "websocket.disconnect", "code": code})
        self.sendClose(code=code)


class _Factory(HTTPFactory):  # type: ignore[misc]
    protocol = _Channel

    def __init__(self, server: _Server) -> None:
        super().__init__(server)
        self.timeOut = server.limits.receive_s

    def buildProtocol(self, addr: Any) -> Any:
        channel: Any = super().buildProtocol(addr)
        channel.requestFactory = _Request
        return channel

    def log(self, request: http.Request) -> None:
        """Keep no access log."""


class _WebSocketFactory(WebSocketFactory):  # type: ignore[misc]
    protocol = _WebSocket


class _Server(daphne_server.Server):  # type: ignore[misc]
    """daphne's bookkeeping of connections and applications, with a life of its own: start, serve, drain."""

    def __init__(
        self,
        application: Application,
        *,
        host: str,
        limits: Limits,
        on_too_large: Callable[[str], str | None],
        on_drain: Sequence[Callable[[float], Awaitable[None]]],
    ) -> None:
        super().__init__(
            application,
            endpoints=[host],  # daphne insists on one, and only its own `run` would open it
            request_buffer_size=64 << 10,
            websocket_timeout=-1,
            server_name=None,
        )
        self.limits = limits
        self.on_too_large = on_too_large
        self.on_drain = on_drain
        self.is_draining = False
        self.connections: dict[_Request | _WebSocket, dict[str, Any]] = {}
        self.http_channels: set[_Channel] = set()
        self.http_factory = _Factory(self)
        self.ws_factory = _WebSocketFactory(self, server=None)
        self.ws_factory.setProtocolOptions(
            autoPingTimeout=self.ping_timeout,
            allowNullOrigin=True,
            openHandshakeTimeout=self.websocket_handshake_timeout,
            maxMessagePayloadSize=limits.max_message,
            maxFramePayloadSize=limits.max_message,
            # Close with 1009 instead of just dropping a client that sends too much at once.
            failByDrop=False,
            # Checked, and closed with our own code, in `onMessage`.
            utf8validateIncoming=False,
        )
        self._loop: asyncio.AbstractEventLoop = reactor._asyncioEventloop
        self._port: Any = None

    def serve(
        self,
        listener: socket.socket,
        on_start: Callable[[], Awaitable[None]] | None,
        on_ready: Callable[[str], None] | None,
    ) -> None:
        _log_errors_of_twisted()
        asyncio.set_event_loop(self._loop)
        life = self._loop.create_task(self._live(listener, on_start, on_ready))
        self._drain_on_signal(life)
        # With its own handlers Twisted would take SIGCHLD and the wakeup descriptor from asyncio.
        reactor.run(installSignalHandlers=False)
        self._cancel_leftovers()
        life.result()

    async def _live(
        self,
        listener: socket.socket,
        on_start: Callable[[], Awaitable[None]] | None,
        on_ready: Callable[[str], None] | None,
    ) -> None:
        try:
            if on_start is not None:
                await on_start()
            url = _url(listener)
            self._accept(listener)
            if on_ready is not None:
                on_ready(url)
            await self._loop.create_future()  # ends when a signal cancels this task
        except asyncio.CancelledError:
            await self._drain()
        finally:
            listener.close()
            reactor.stop()

    def _accept(self, listener: socket.socket) -> None:
        reactor.callLater(1, self.application_checker)
        reactor.callLater(2, self.timeout_checker)
        self._port = reactor.adoptStreamPort(listener.fileno(), listener.family, self.http_factory)
        listener.close()

    def num_sockets(self, client_host: str) -> int:
        return sum(each.client_host == client_host for each in self._open_sockets())

    def _open_sockets(self) -> list[_WebSocket]:
        return [
            protocol
            for protocol, details in self.connections.items()
            if isinstance(protocol, _WebSocket) and "disconnected" not in details
        ]

    async def handle_reply(self, protocol: _Request | _WebSocket, message: Message) -> None:
        """Send, then wait until the client has read enough for more."""
        await super().handle_reply(protocol, message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            return
        await protocol.connection.writable.wait()
        if "disconnected" in self.connections.get(protocol, {"disconnected": True}):
            # An application that goes on sending to nobody must not starve the others.
            await asyncio.sleep(0)

    def _drain_on_signal(self, life: asyncio.Task[None]) -> None:
        def on_first_signal(number: int, frame: object) -> None:
            for each in (signal.SIGTERM, signal.SIGINT):
                signal.signal(each, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, self.limits.drain_s + HUNG_S)

        for number in (signal.SIGTERM, signal.SIGINT):
            # asyncio wakes the loop, whichever thread the signal hits. Our handler needs no loop, so that a
            # second signal and the alarm end the process even while the loop is stuck.
            self._loop.add_signal_handler(number, life.cancel)
            signal.signal(number, on_first_signal)

    async def _drain(self) -> None:
        """Finish what runs within `drain_s`: hooks and HTTP first, then sockets, then whatever is left."""
        end = self._loop.time() + self.limits.drain_s
        cancelling_at = end - CANCELLING_S
        closing_at = cancelling_at - CLOSING_S
        hooks = self._start_hooks(max(0.0, closing_at - self._loop.time()))
        await asyncio.sleep(0)  # each hook takes its first step: the application knows
        self.is_draining = True
        if self._port is not None:
            self._port.stopListening()
        for channel in list(self.http_channels):
            channel.close_when_idle()
        await self._until(lambda: not self.http_channels and all(hook.done() for hook in hooks), closing_at)
        for open_socket in self._open_sockets():
            if open_socket.state == open_socket.STATE_OPEN:
                open_socket.close_with(CLOSE_RESTARTING)
        await self._until(lambda: not self._open_sockets() and not self._running(), cancelling_at)
        await self._cancel([*hooks, *self._running()], end)

    def _start_hooks(self, seconds: float) -> list[asyncio.Task[None]]:
        return [self._loop.create_task(_logged(hook(seconds))) for hook in self.on_drain]

    def _running(self) -> list[asyncio.Task[None]]:
        tasks = (details.get("application_instance") for details in self.connections.values())
        return [task for task in tasks if task is not None and not task.done()]

    async def _until(self, is_done: Callable[[], bool], deadline: float) -> None:
        while not is_done() and self._loop.time() < deadline:
            await asyncio.sleep(0.02)

    async def _cancel(self, tasks: Sequence[asyncio.Task[None]], deadline: float) -> None:
        for task in tasks:
            task.cancel()
        await self._until(lambda: all(task.done() for task in tasks), deadline)

    def _cancel_leftovers(self) -> None:
        """End the application's own background tasks, as `asyncio.run` does."""
        tasks = [task for task in asyncio.all_tasks(self._loop) if not task.done()]
        self._loop.run_until_complete(self._cancel(tasks, self._loop.time() + CANCELLING_S))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _logged(hook: Awaitable[None]) -> None:
    try:
        await hook
    except Exception:
        logger.exception("A drain hook failed; draining goes on.")


def _log_errors_of_twisted() -> None:
    """Pass on what Twisted reports as an error; the rest is about clients that come and go."""
    logging.getLogger("twisted").setLevel(logging.ERROR)
    observer: Any = STDLibLogObserver("twisted")
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False, discardBuffer=True)
