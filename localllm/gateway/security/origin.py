"""Which web pages may open a websocket here: those of this very server, and no others.

Channels' own validator compares with ALLOWED_HOSTS, ignores scheme and port, and accepts everything when
that list has a `*`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings
from django.http.request import split_domain_port, validate_host

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[..., Awaitable[None]]

_SECURE = {"http": "https", "ws": "wss"}
_PAGE_SCHEME = {"ws": "http", "wss": "https"}


class OriginGuard:
    """Refuses a websocket whose Origin is not exactly the scheme, host and port it was opened at."""

    def __init__(self, application: Application) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_same_origin(scope):
            await self.application(scope, receive, send)
        else:
            await receive()  # the handshake; closing it before it is accepted answers 403
            await send({"type": "websocket.close"})


def is_same_origin(scope: Scope) -> bool:
    origin, host = _header(scope, b"origin"), _header(scope, b"host")
    if origin is None or host is None:
        return False
    # A name that an attacker's DNS points to this machine would be its own origin.
    domain, _ = split_domain_port(host)
    if not domain or not validate_host(domain, settings.ALLOWED_HOSTS):
        return False
    return origin == f"{_PAGE_SCHEME[scope.get('scheme', 'ws')]}://{host}"


def _header(scope: Scope, name: bytes) -> str | None:
    """The value of a header that is there exactly once."""
    values = [value for key, value in scope["headers"] if key == name]
    return values[0].decode("latin1").lower() if len(values) == 1 else None


class HttpsProxy:
    """Behind a proxy that speaks HTTPS to the browser, says so to the application."""

    def __init__(self, application: Application) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("scheme") in _SECURE:
            scope = {**scope, "scheme": _SECURE[scope["scheme"]]}
        await self.application(scope, receive, send)
