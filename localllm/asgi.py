"""The wiring of the web process: what answers HTTP and websockets, what starts before it, what ends with it."""

# ruff: noqa: E402  Django is set up before anything that imports rows.
from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "localllm.settings")

from django.core.asgi import get_asgi_application

pages = get_asgi_application()

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.exception import convert_exception_to_response
from django.urls import path

from chat import live
from chat.archive import importing
from chat.consumers import ChatConsumer
from localllm.gateway import database, downloads, jobs, quantising, registration, replays, serving, trials, uploads
from localllm.gateway.api.access import hosts_and_headers
from localllm.gateway.api.errors import too_large
from localllm.gateway.models import Download, Replay, Trial, Upload
from localllm.gateway.security import ContentSecurityPolicyMiddleware, HttpsProxy, OriginGuard
from localllm.gateway.security.origin import Application
from schemas_app.batches import running as batches
from schemas_app.batches.models import Batch

consumer: Any = ChatConsumer.as_asgi()  # no view, but routed like one
sockets: Any = AuthMiddlewareStack(URLRouter([path("ws/chat/<uuid:conversation_id>/", consumer)]))

API = ("/v1/", "/api/")


class ApiHandler(ASGIHandler):
    """Django for programs, which bring a key instead of a session.

    The middlewares of pages would do more than they need, each step in another thread and back.
    """

    def load_middleware(self, is_async: bool = False) -> None:
        self._view_middleware: list[Any] = []
        self._template_response_middleware: list[Any] = []
        self._exception_middleware: list[Any] = []
        answer: Any = convert_exception_to_response(self._get_response_async)  # type: ignore[attr-defined]
        self._middleware_chain = convert_exception_to_response(
            ContentSecurityPolicyMiddleware(hosts_and_headers(answer))
        )


api = ApiHandler()


async def http(scope: Any, receive: Any, send: Any) -> None:
    await (api if scope["path"].startswith(API) else pages)(scope, receive, send)


application: Application = ProtocolTypeRouter({"http": http, "websocket": OriginGuard(sockets)})
if settings.SESSION_COOKIE_SECURE:
    application = HttpsProxy(application)


KINDS: dict[str, jobs.Kind] = {
    Batch.KIND: batches.run,
    Download.KIND: downloads.run,
    importing.KIND: importing.run,
    quantising.KIND: quantising.run,
    Replay.KIND: replays.run,
    Trial.KIND: trials.run,
    Upload.KIND: uploads.run,
}


def run(*, host: str, port: int, say: Callable[[str], None], on_ready: Callable[[str], None]) -> None:
    """Serve until a signal. `say` tells the console what goes on; `on_ready` gets the address."""

    async def start() -> None:
        await registration.register_configured(say)
        await database.write(uploads.remove_abandoned)
        await serving.start(say)
        await live.resume_interrupted()
        await jobs.runner.start(KINDS)

    from localllm.serve import Limits, serve  # here: it installs Twisted's reactor, which another server must not have

    serve(
        application,
        host=host,
        port=port,
        limits=Limits(is_behind_proxy=settings.SESSION_COOKIE_SECURE),
        on_start=start,
        on_ready=on_ready,
        on_too_large=lambda path: json.dumps(too_large().body) if path.startswith(API) else None,
        on_drain=[live.drain, jobs.runner.drain, serving.drain],
    )
