"""What the web server promises about hostile, slow and vanished clients, and about its own end.

Each test talks to a real server process (tests/serve_app.py) over a loopback port.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from email.message import Message
from pathlib import Path
from typing import NamedTuple

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

ROOT = Path(__file__).parent.parent
SMALL_LIMITS = {"max_body": 1 << 20, "max_sockets_per_client": 16, "send_stall_s": 1, "receive_s": 2}
MB = 1 << 20


class Response(NamedTuple):
    status: int
    headers: Message
    body: bytes


class ServerProcess:
    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.port = int(url.rpartition(":")[2])

    def request(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Response:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as client:
            client.request(method, path, body or None, headers or {})
            response = client.getresponse()
            return Response(response.status, response.headers, response.read())

    def get(self, path: str) -> Response:
        return self.request("GET", path)

    def events(self) -> list[str]:
        return json.loads(self.get("/events").body)

    def socket(self, path: str, headers: dict[str, str] | None = None) -> ClientConnection:
        url = f"ws://127.0.0.1:{self.port}{path}"
        return connect(url, close_timeout=2, max_size=None, additional_headers=headers)

    def raw(self, request: str) -> socket.socket:
        """Send a request over a plain socket with a small receive buffer, and read nothing."""
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        client.settimeout(20)
        client.connect(("127.0.0.1", self.port))
        client.sendall(request.replace("\n", "\r\n").encode())
        return client

    def peak_memory(self) -> int:
        """The most resident memory the process ever had, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def refuses_connections(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) != 0

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=20)
        return self.process.returncode, output


def start(port: int = 0, **limits: float) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "tests" / "serve_app.py"), str(port), json.dumps(limits)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@contextmanager
def running(**limits: float) -> Iterator[ServerProcess]:
    with start(**limits) as process:
        try:
            assert process.stdout is not None
            yield ServerProcess(process, process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running(**SMALL_LIMITS) as server:
        yield server


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"Waited {seconds} s in vain for: {what}."
        time.sleep(0.05)


def read_to_end(client: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionError):
        while data := client.recv(64 << 10):
            received += data
    return received


GET = "GET {} HTTP/1.1\nHost: x\n\n"
UPGRADE = (
    "GET {} HTTP/1.1\nHost: x\nUpgrade: websocket\nConnection: Upgrade\n"
    "Sec-WebSocket-Version: 13\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\n\n"
)


def test_it_runs_the_start_hook_before_the_first_request(server: ServerProcess) -> None:
    assert server.events()[0] == "started"


@pytest.mark.parametrize("request_text", [GET, UPGRADE], ids=["http", "websocket"])
def test_it_waits_for_a_client_that_does_not_read_then_drops_it(server: ServerProcess, request_text: str) -> None:
    before, num_events = server.peak_memory(), len(server.events())
    with server.raw(request_text.format("/flood")) as client:
        wait_for(lambda: len(server.events()) > num_events, "the end of the flood")
        received = read_to_end(client)
    assert server.events()[num_events] == "flood cut"
    assert len(received) < 20 * MB
    assert server.peak_memory() - before < 30 * MB


def test_it_lets_a_slow_client_read_to_the_end(server: ServerProcess) -> None:
    received = 0
    with server.raw(GET.format("/big").replace("\n\n", "\nConnection: close\n\n")) as client:
        slow_until = time.monotonic() + 2.5 * SMALL_LIMITS["send_stall_s"]
        while data := client.recv(64 << 10):
            received += len(data)
            if time.monotonic() < slow_until:
                time.sleep(0.1)
    assert received > 10 * MB


def test_it_stops_reading_from_a_client_that_does_not_read_its_pongs(server: ServerProcess) -> None:
    pings = Frame(Opcode.PING, b"x" * 125).serialize(mask=True) * 1000
    with server.raw(UPGRADE.format("/deaf")) as client:
        assert client.recv(1000).startswith(b"HTTP/1.1 101 ")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            for _ in range(500):
                client.sendall(pings)


def test_it_closes_a_socket_that_floods_a_busy_application(server: ServerProcess) -> None:
    before = server.peak_memory()
    with server.socket("/deaf") as client, pytest.raises(ConnectionClosed) as closed:
        for _ in range(100_000):
            client.send("x" * 1000)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 4008
    assert server.peak_memory() - before < 30 * MB


@pytest.mark.parametrize(
    ("message", "is_text", "code"),
    [
        (b"x" * (300 << 10), True, 1009),
        ([b"x" * (200 << 10)] * 2, True, 1009),
        (b"binary", False, 4007),
        (b"not \xff UTF-8", True, 4007),
    ],
    ids=["big frame", "big message of small frames", "binary", "invalid UTF-8"],
)
def test_it_closes_a_socket_that_breaks_a_limit(
    server: ServerProcess, message: bytes | list[bytes], is_text: bool, code: int
) -> None:
    with server.socket("/echo") as client:
        client.send("hello")
        assert client.recv() == "hello"
        with pytest.raises(ConnectionClosed) as closed:
            client.send(message, text=is_text)
            client.recv(timeout=10)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == code


def test_it_bounds_the_sockets_of_one_client(server: ServerProcess) -> None:
    def is_refused() -> bool:
        try:
            open_sockets.enter_context(server.socket("/echo"))
        except InvalidStatus as refused:
            return refused.response.status_code == 429
        return False

    with ExitStack() as open_sockets:
        assert [is_refused() for _ in range(SMALL_LIMITS["max_sockets_per_client"] + 1)][-1]
    wait_for(lambda: not is_refused(), "room for another socket")
    open_sockets.close()


def test_behind_a_proxy_clients_are_told_apart_by_what_it_adds() -> None:
    def open_for(client: str) -> None:
        open_sockets.enter_context(server.socket("/echo", {"X-Forwarded-For": f"made up, {client}"}))

    with running(max_sockets_per_client=1, is_behind_proxy=True) as server, ExitStack() as open_sockets:
        open_for("192.0.2.1")
        open_for("192.0.2.2")
        with pytest.raises(InvalidStatus):
            open_for("192.0.2.1")


def test_it_refuses_a_big_body_before_it_is_sent(server: ServerProcess) -> None:
    with server.raw(f"POST /upload HTTP/1.1\nHost: x\nContent-Length: {10**12}\n\n") as client:
        answer = read_to_end(client)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"\r\n\r\nThe body is too large: at most 1,048,576 bytes are taken.")


def test_it_refuses_a_chunked_body_that_grows_too_big(server: ServerProcess) -> None:
    before = server.peak_memory()
    chunk = b"10000\r\n" + b"x" * (64 << 10) + b"\r\n"
    with server.raw("POST /upload HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n") as client:
        with suppress(ConnectionError):
            for _ in range(1000):
                client.sendall(chunk)
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")
    assert server.peak_memory() - before < 30 * MB


def test_it_takes_a_body_of_just_the_limit(server: ServerProcess) -> None:
    response = server.request("POST", "/upload", b"x" * SMALL_LIMITS["max_body"])
    assert (response.status, int(response.body)) == (200, SMALL_LIMITS["max_body"])


def test_it_drops_a_request_that_trickles_in(server: ServerProcess) -> None:
    with server.raw("GET /events HTTP/1.1\nX-Slow: ") as client:
        client.setblocking(False)

        def is_dropped() -> bool:
            try:
                client.sendall(b"x")
                return client.recv(1) == b""
            except BlockingIOError:
                return False
            except ConnectionError:
                return True

        wait_for(is_dropped, "the server to lose patience")


def test_it_refuses_endless_headers(server: ServerProcess) -> None:
    with server.raw("GET /events HTTP/1.1\n" + "X-Many: x\n" * 5000) as client:
        assert read_to_end(client).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(("path", "view"), [("slow", "slow view"), ("stream", "streaming view")])
def test_it_cancels_a_view_whose_client_went_away(server: ServerProcess, path: str, view: str) -> None:
    with server.raw(GET.format(f"/django/{path}")):
        wait_for(lambda: f"{view} begun" in server.events(), "the view to begin")
    wait_for(lambda: f"{view} cancelled" in server.events(), "the cancelled view")


def test_it_cuts_a_response_whose_application_crashed(server: ServerProcess) -> None:
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        server.get("/crash")
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        server.get("/crash")


def test_it_lets_the_application_run_child_processes(server: ServerProcess) -> None:
    assert server.get("/child").body == b"hello 3"


def test_it_does_not_name_its_software(server: ServerProcess) -> None:
    with server.socket("/echo") as client:
        assert client.response is not None
        assert "Server" not in client.response.headers
    assert "Server" not in server.get("/events").headers


def test_it_does_not_let_a_client_choose_the_root_path(server: ServerProcess) -> None:
    response = server.request("GET", "/django/root-path", headers={"Daphne-Root-Path": "/evil"})
    assert response.body == b"root path: "


def test_it_drains_on_sigterm() -> None:
    with (
        running(drain_s=600) as server,
        server.socket("/echo") as client,
        server.raw(GET.format("/half-a-second")) as in_flight,
    ):
        wait_for(lambda: "working" in server.events(), "the request in flight")
        code, output = server.end(signal.SIGTERM)
        response = read_to_end(in_flight)
        assert response.startswith(b"HTTP/1.1 200 ") and b"done" in response
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=10)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4012
        assert output.split("\n")[:2] == ["hook: told", "hook: finished"]
        assert code == 0


def test_it_drains_on_ctrl_c_in_bounded_time() -> None:
    with running(drain_s=2) as server, server.raw(GET.format("/forever")):
        wait_for(lambda: "working" in server.events(), "the request that never ends")
        code, _ = server.end(signal.SIGINT)
        assert code == 0


def test_it_ends_at_once_on_a_second_signal() -> None:
    with running(drain_s=600) as server, server.raw(GET.format("/forever")):
        wait_for(lambda: "working" in server.events(), "the request that never ends")
        server.process.terminate()
        wait_for(server.refuses_connections, "the start of draining")
        assert server.process.poll() is None
        code, _ = server.end(signal.SIGTERM)
        assert code == -signal.SIGTERM


def test_it_says_that_the_port_is_taken(server: ServerProcess) -> None:
    with start(port=server.port) as second:
        _, errors = second.communicate(timeout=20)
    assert second.returncode == 1
    assert errors == (
        f"Port {server.port} on 127.0.0.1 is already in use: "
        "stop the program that listens there, or choose another port.\n"
    )
