"""Server-sent events over Django: closed when the client goes away, kept alive while nothing comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from django.http import StreamingHttpResponse

T = TypeVar("T")

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


def event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def with_pauses(items: AsyncGenerator[T, None], every_s: float = KEEP_ALIVE_S) -> AsyncGenerator[T | None, None]:
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
