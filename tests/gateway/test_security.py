"""Who may come in, and how often a stranger may guess."""

from __future__ import annotations

import json
from contextlib import closing
from email.message import Message
from http.client import HTTPConnection
from typing import Any, NamedTuple

import pytest
from asgiref.sync import SyncToAsync
from asgiref.testing import ApplicationCommunicator
from django.test import Client, override_settings

from localllm.gateway.security.origin import HttpsProxy, OriginGuard, is_same_origin
from localllm.gateway.security.throttle import FORGOTTEN_AFTER_S, MAX_KEYS, LoginThrottle
from tests.server import Server


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttle(clock: Clock) -> LoginThrottle:
    return LoginThrottle(clock)


def fail(throttle: LoginThrottle, times: int, account: str = "ada", address: str = "10.0.0.9") -> None:
    for _ in range(times):
        throttle.attempt(account, address)


def handshake(origin: str | None, host: str = "localhost:8000", scheme: str = "ws") -> dict[str, Any]:
    headers = [(b"host", host.encode())]
    if origin is not None:
        headers.append((b"origin", origin.encode()))
    return {"type": "websocket", "scheme": scheme, "headers": headers}


# Websockets


@pytest.mark.parametrize(
    ("origin", "host", "scheme"),
    [
        ("http://localhost:8000", "localhost:8000", "ws"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", "ws"),
        ("http://[::1]:8000", "[::1]:8000", "ws"),
        ("https://localhost", "localhost", "wss"),
    ],
)
def test_it_lets_its_own_pages_open_a_socket(origin: str, host: str, scheme: str) -> None:
    assert is_same_origin(handshake(origin, host, scheme))


@pytest.mark.parametrize(
    ("origin", "host", "scheme"),
    [
        (None, "localhost:8000", "ws"),
        ("null", "localhost:8000", "ws"),
        ("", "localhost:8000", "ws"),
        ("http://evil.example", "localhost:8000", "ws"),
        ("http://localhost", "localhost:8000", "ws"),  # another port is another site
        ("http://localhost:8001", "localhost:8000", "ws"),
        ("http://127.0.0.1:8000", "localhost:8000", "ws"),
        ("https://localhost:8000", "localhost:8000", "ws"),
        ("http://localhost:8000", "localhost:8000", "wss"),
        ("http://localhost:8000.evil.example", "localhost:8000", "ws"),
        ("http://evil.example:8000", "evil.example:8000", "ws"),  # its DNS points here
    ],
)
def test_it_refuses_a_socket_to_any_other_page(origin: str | None, host: str, scheme: str) -> None:
    assert not is_same_origin(handshake(origin, host, scheme))


@override_settings(ALLOWED_HOSTS=["*"])
def test_it_compares_origins_even_when_every_host_is_allowed() -> None:
    assert not is_same_origin(handshake("http://evil.example", "llm.example:8000"))
    assert not is_same_origin(handshake(None, "llm.example:8000"))


def test_it_refuses_two_origins() -> None:
    scope = handshake("http://localhost:8000")
    scope["headers"].append((b"origin", b"http://evil.example"))
    assert not is_same_origin(scope)


async def test_it_answers_a_foreign_page_before_the_application_hears_of_it() -> None:
    heard, sent = [], []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        heard.append(scope)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await OriginGuard(application)(handshake("http://evil.example"), receive, send)
    assert (heard, sent) == ([], [{"type": "websocket.close"}])


@pytest.mark.parametrize(("spoken", "shown"), [("http", "https"), ("ws", "wss"), ("https", "https")])
async def test_behind_a_proxy_the_scheme_is_what_the_browser_sees(spoken: str, shown: str) -> None:
    seen = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["scheme"])

    await HttpsProxy(application)({"type": "http", "scheme": spoken}, None, None)  # type: ignore[arg-type]
    assert seen == [shown]


# Every answer of a real server

API_ADDRESSES = ["/v1/models", "/v1/nothing", "/api/local-llm/structured"]


@pytest.mark.parametrize("path", [*API_ADDRESSES, "/", "/login/"])
def test_every_answer_has_the_security_headers(server: Server, path: str) -> None:
    headers = ask(server, path).headers
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "same-origin" and "default-src 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize("path", API_ADDRESSES)
@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8000", "a b"])
def test_the_api_does_not_answer_to_a_foreign_name(server: Server, path: str, host: str) -> None:
    refused = ask(server, path, host)
    error = json.loads(refused.body)["error"]
    assert (refused.status, error["code"]) == (400, "unknown_host") and refused.headers["X-Frame-Options"] == "DENY"
    assert host in error["message"] and "LOCALLLM_ALLOWED_HOSTS" in error["message"]


def test_no_page_answers_to_a_foreign_name(server: Server) -> None:
    assert ask(server, "/", "evil.example").status == 400


@pytest.mark.parametrize("path", [*API_ADDRESSES, "/"])
def test_every_address_answers_to_the_names_of_this_machine(server: Server, path: str) -> None:
    assert {ask(server, path, host).status for host in ("localhost:8000", "127.0.0.1")}.isdisjoint({400})


async def test_no_middleware_of_the_api_takes_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    from localllm.asgi import api  # here: it needs the static files, which are collected before the first test

    in_threads, run = [], SyncToAsync.__call__

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        in_threads.append(getattr(self.func, "__qualname__", ""))
        return run(self, *args, **kwargs)

    monkeypatch.setattr(SyncToAsync, "__call__", noted)
    scope = {"type": "http", "method": "GET", "path": "/v1/nothing", "headers": [(b"host", b"localhost")]}
    client = ApplicationCommunicator(api, scope)
    await client.send_input({"type": "http.request"})
    assert (await client.receive_output())["status"] == 404
    await client.wait()
    assert [name for name in in_threads if "iddleware" in name] == []


class Answer(NamedTuple):
    status: int
    headers: Message
    body: bytes


def ask(server: Server, path: str, host: str = "localhost") -> Answer:
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=30)) as client:
        client.request("GET", path, headers={"Host": host})
        response = client.getresponse()
        return Answer(response.status, response.headers, response.read())


# Wrong passwords


def test_it_lets_five_wrong_passwords_pass_and_then_waits_longer_each_time(
    throttle: LoginThrottle, clock: Clock
) -> None:
    assert [throttle.attempt("ada", "10.0.0.9") for _ in range(5)] == [0] * 5
    waits = []
    for _ in range(4):
        waits.append(throttle.attempt("ada", "10.0.0.9"))
        clock.now += waits[-1]
        assert throttle.attempt("ada", "10.0.0.9") == 0
    assert waits == [1, 2, 4, 8]


def test_it_does_not_count_tries_it_refused(throttle: LoginThrottle, clock: Clock) -> None:
    fail(throttle, 100)
    assert throttle.attempt("ada", "10.0.0.9") == 1


def test_it_counts_many_tries_at_once(throttle: LoginThrottle) -> None:
    # Before any of them is known to be wrong.
    assert sum(throttle.attempt("ada", "10.0.0.9") == 0 for _ in range(100)) == 5


def test_it_forgives_after_the_right_password(throttle: LoginThrottle) -> None:
    fail(throttle, 5)
    throttle.succeed("ada", "10.0.0.9")
    assert throttle.attempt("ada", "10.0.0.9") == 0


def test_a_stranger_cannot_lock_the_owner_out_for_long(throttle: LoginThrottle, clock: Clock) -> None:
    for guess in range(1000):
        fail(throttle, 1, address=f"10.0.{guess // 250}.{guess % 250}")
        clock.now += 0.01
    assert throttle.attempt("ada", "192.168.1.2") <= 30


def test_one_address_cannot_guess_at_many_accounts(throttle: LoginThrottle) -> None:
    assert sum(throttle.attempt(f"user{n}", "10.0.0.9") == 0 for n in range(1000)) == 50


def test_another_spelling_is_the_same_account(throttle: LoginThrottle) -> None:
    fail(throttle, 5)
    assert throttle.attempt(" ADA", "10.0.0.9") > 0


def test_it_forgets_in_time(throttle: LoginThrottle, clock: Clock) -> None:
    fail(throttle, 5)
    clock.now += FORGOTTEN_AFTER_S
    assert throttle.attempt("ada", "10.0.0.9") == 0


def test_its_memory_is_bounded(throttle: LoginThrottle) -> None:
    for n in range(MAX_KEYS):
        fail(throttle, 1, f"user{n}", f"10.{n >> 8}.0.{n & 255}")
    assert len(throttle._failures) <= MAX_KEYS


# Pages


@pytest.mark.django_db
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_form_without_its_token_is_refused(method: str) -> None:
    assert Client(enforce_csrf_checks=True).generic(method, "/login/").status_code == 403


@pytest.mark.django_db
def test_every_response_has_a_nonce_of_its_own(client: Client) -> None:
    first, second = (client.get("/health")["Content-Security-Policy"] for _ in range(2))
    assert "script-src 'nonce-" in first and "unsafe" not in first
    assert first != second


@pytest.mark.django_db
def test_a_page_that_is_not_there_has_a_policy_too(client: Client) -> None:
    response = client.get("/nowhere")
    assert response.status_code == 404 and "default-src 'none'" in response["Content-Security-Policy"]


@pytest.mark.django_db
def test_scripts_may_be_loaded_by_name_in_the_admin_only(admin_client: Client) -> None:
    assert "'self'" in _scripts(admin_client.get("/admin/"))
    assert "'self'" not in _scripts(admin_client.get("/account/password/"))


def _scripts(response: Any) -> str:
    return next(part for part in response["Content-Security-Policy"].split(";") if "script-src" in part)
