"""A stream of events is kept alive while it waits, and closed with whoever reads it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from localllm.gateway.api.errors import ApiError
from localllm.gateway.api.sse import KEEP_ALIVE, EventStream, respond, with_pauses


class Source:
    """Two items with a wait between them; notes that it was closed."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.is_closed = False

    async def items(self) -> AsyncGenerator[str, None]:
        try:
            yield "a"
            await self.go_on.wait()
            yield "b"
        finally:
            self.is_closed = True


async def test_it_says_that_nothing_came_and_loses_nothing() -> None:
    source, seen = Source(), []
    async for item in with_pauses(source.items(), every_s=0.01):
        seen.append(item)
        if item is None:
            source.go_on.set()
    assert [item for item in seen if item] == ["a", "b"] and None in seen and source.is_closed


async def test_closing_it_closes_its_source() -> None:
    source = Source()
    items = with_pauses(source.items(), every_s=10)
    await anext(items)
    await items.aclose()
    assert source.is_closed


async def test_cancelling_its_reader_closes_its_source() -> None:
    source = Source()

    async def read() -> None:
        async for _ in with_pauses(source.items(), every_s=10):
            pass

    reader = asyncio.create_task(read())
    await asyncio.sleep(0.01)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert source.is_closed


async def test_an_error_of_its_source_arrives() -> None:
    async def broken() -> AsyncGenerator[str, None]:
        yield "a"
        raise ValueError("broken")

    items = with_pauses(broken(), every_s=10)
    assert await anext(items) == "a"
    with pytest.raises(ValueError, match="broken"):
        await anext(items)


async def test_a_response_that_is_not_read_to_its_end_closes_its_source() -> None:
    source = Source()
    parts = aiter(EventStream(source.items()))
    assert await anext(parts) == b"a"
    await parts.aclose()  # type: ignore[attr-defined]
    assert source.is_closed


async def test_a_failure_after_a_pause_is_the_last_event_and_done_does_not_come() -> None:
    """The status has gone out with the first comment, so only the stream itself can say that it failed."""
    go_on = asyncio.Event()

    async def failing() -> AsyncGenerator[dict[str, Any]]:
        await go_on.wait()
        raise ApiError(422, "No attempt was valid.", code="invalid_after_retries")
        yield {}

    response = await respond(failing(), every_s=0.01)
    go_on.set()
    text = b"".join([part async for part in response]).decode()
    pauses, _, last = text.strip().rpartition("data: ")
    assert response.status_code == 200 and {*pauses.split("\n\n")} == {KEEP_ALIVE.strip(), ""}
    assert json.loads(last)["error"]["code"] == "invalid_after_retries"
