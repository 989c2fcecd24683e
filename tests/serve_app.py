"""The application behind tests/test_serve.py: misbehaves on purpose, with the limits asked for."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path

from localllm.serve import Limits, serve

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

NUM_BLOCKS = 1600
BLOCK = "x" * (64 << 10)  # 100 MB in all
BIG = "x" * (10 << 20)
PR_SET_PDEATHSIG = 1

events: list[str] = []


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["path"].startswith("/django/"):
        await django_application(scope, receive, send)
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await SOCKETS[scope["path"]](receive, send)
    else:
        await PAGES[scope["path"]](receive, send)


async def answer(send: Send, body: str) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body.encode()})


async def show_events(receive: Receive, send: Send) -> None:
    await answer(send, json.dumps(events))


async def big(receive: Receive, send: Send) -> None:
    await answer(send, BIG)


async def upload(receive: Receive, send: Send) -> None:
    num_bytes, more = 0, True
    while more:
        message = await receive()
        num_bytes, more = num_bytes + len(message["body"]), message["more_body"]
    await answer(send, str(num_bytes))


async def half_a_second(receive: Receive, send: Send) -> None:
    events.append("working")
    await asyncio.sleep(0.5)
    await answer(send, "done")


async def forever(receive: Receive, send: Send) -> None:
    events.append("working")
    await asyncio.sleep(1000)


async def crash_midway(receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half of it", "more_body": True})
    raise RuntimeError("on purpose")


async def ask_child(receive: Receive, send: Send) -> None:
    def die_with_parent() -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "print('hello'); raise SystemExit(3)",
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=die_with_parent,
    )
    output, _ = await child.communicate()
    await answer(send, f"{output.decode().strip()} {child.returncode}")


async def flood_page(receive: Receive, send: Send) -> None:
    async def blocks() -> None:
        for _ in range(NUM_BLOCKS):
            await send({"type": "http.response.body", "body": BLOCK.encode(), "more_body": True})
        await send({"type": "http.response.body"})

    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await until_disconnect(receive, blocks())


async def flood_socket(receive: Receive, send: Send) -> None:
    async def blocks() -> None:
        for _ in range(NUM_BLOCKS):
            await send({"type": "websocket.send", "text": BLOCK})

    await until_disconnect(receive, blocks())


async def until_disconnect(receive: Receive, sending: Any) -> None:
    async def disconnect() -> None:
        while not (await receive())["type"].endswith(".disconnect"):
            pass

    sender, gone = asyncio.ensure_future(sending), asyncio.ensure_future(disconnect())
    await asyncio.wait((sender, gone), return_when=asyncio.FIRST_COMPLETED)
    events.append("flood sent" if sender.done() else "flood cut")
    sender.cancel()
    gone.cancel()


async def echo(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def deaf(receive: Receive, send: Send) -> None:
    await asyncio.sleep(1000)


PAGES = {
    "/events": show_events,
    "/big": big,
    "/upload": upload,
    "/half-a-second": half_a_second,
    "/forever": forever,
    "/crash": crash_midway,
    "/child": ask_child,
    "/flood": flood_page,
}
SOCKETS = {"/flood": flood_socket, "/echo": echo, "/deaf": deaf}


async def slow_view(request: HttpRequest) -> HttpResponse:
    events.append("slow view begun")
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        events.append("slow view cancelled")
        raise
    return HttpResponse()


async def streaming_view(request: HttpRequest) -> StreamingHttpResponse:
    async def ticks() -> AsyncIterator[str]:
        events.append("streaming view begun")
        try:
            yield "data: first\n\n"
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            events.append("streaming view cancelled")
            raise

    return StreamingHttpResponse(ticks(), content_type="text/event-stream")


async def root_path_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse("root path: " + request.META.get("SCRIPT_NAME", ""))


urlpatterns = [
    path("django/slow", slow_view),
    path("django/stream", streaming_view),
    path("django/root-path", root_path_view),
]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="for tests")
django_application = get_asgi_application()


async def start() -> None:
    await asyncio.sleep(0.1)
    events.append("started")


async def drain(seconds: float) -> None:
    print("hook: told", flush=True)
    try:
        await asyncio.sleep(0.1)
        print("hook: finished", flush=True)
    except asyncio.CancelledError:
        print("hook: cancelled", flush=True)
        raise


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("limits", type=json.loads)
    arguments = parser.parse_args()
    serve(
        application,
        host="127.0.0.1",
        port=arguments.port,
        limits=Limits(**arguments.limits),
        on_start=start,
        on_ready=lambda url: print(url, flush=True),
        on_drain=[drain],
    )
