"""Server-sent events over Django: closed when the client goes away, kept alive while nothing comes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from django.http import StreamingHttpResponse

from localllm.gateway.api import errors
from localllm.gateway.api.errors import ApiError

T = TypeVar("T")

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 10.0
KEEP_ALIVE = ": keep-alive\n\n"
DONE = "data: [DONE]\n\n"


class EventStream(StreamingHttpResponse):
    """Django leaves the closing of an iterator it has not read to its end to the garbage collector."""

    def __init__(self, parts: AsyncGenerator[str, None]) -> None:
        super().__init__(parts, content_type="text/event-stream; charset=utf-8")
        self["Cache-Control"] = "no-cache"
        self["X-Accel-Buffering"] = "no"  # nginx would collect the answer
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async with aclosing(self._parts) as parts:
            async for part in parts:
                yield part.encode()


async def respond(bodies: AsyncGenerator[dict[str, Any]], every_s: float = KEEP_ALIVE_S) -> EventStream:
    """Each body as an event, then [DONE]; an error on the way is an event too, and [DONE] does not come.

    Returns when there is a first one: until then an error is raised, and still has its own status.
    """
    items = with_pauses(bodies, every_s)
    return EventStream(_parts(await anext(items), items))


async def _parts(first: dict[str, Any] | None, items: AsyncGenerator[dict[str, Any] | None]) -> AsyncGenerator[str]:
    async with aclosing(items):
        yield _part(first)
        try:
            async for body in items:
                yield _part(body)
        except ApiError as exc:
            yield event(exc.body)
            return
        except Exception:
            log.exception("A stream failed.")
            yield event(errors.bug().body)
            return
        yield DONE


def _part(body: dict[str, Any] | None) -> str:
    return KEEP_ALIVE if body is None else event(body)


def event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def with_pauses(items: AsyncGenerator[T, None], every_s: float) -> AsyncGenerator[T | None, None]:
    """The items, and None each time none has come for `every_s`. Closes `items` when it is closed."""
    waiting = asyncio.ensure_future(_next(items))
    try:
        while True:
            await asyncio.wait({waiting}, timeout=every_s)
            if not waiting.done():
                yield None
                continue
            try:
                item = waiting.result()
            except StopAsyncIteration:
                return
            yield item
            waiting = asyncio.ensure_future(_next(items))
    finally:
        waiting.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await waiting
        await items.aclose()


async def _next(items: AsyncGenerator[T, None]) -> T:
    return await anext(items)
