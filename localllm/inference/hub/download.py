"""How a file of the hub comes into the store: from where it stood, told of as it comes, checked at the end.

An iterator that is closed pauses: what came is kept, and the next one goes on from there.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import httpx2

from localllm.inference.errors import HubError
from localllm.inference.hub.client import Hub
from localllm.inference.hub.files import HubFile
from localllm.inference.hub.store import Store, Unfinished, disk_error

P = ParamSpec("P")
T = TypeVar("T")

BLOCK_BYTES = 1 << 20
BLOCK_S = 0.5  # a slow line is written and told of this often
MIN_BYTES = 64 << 10  # in `Hub.silence_s`: less is no progress
RATE_OVER_S = 10.0

MAX_FRUITLESS = 6  # attempts in a row that bring nothing
LONGEST_WAIT_S = 60.0
LONGEST_RETRY_AFTER_S = 600.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the whole file is. `delay` says why nothing comes at the moment."""

    num_bytes: int
    size_bytes: int
    bytes_per_s: float = 0.0
    delay: str = ""

    @property
    def left_s(self) -> float | None:
        return (self.size_bytes - self.num_bytes) / self.bytes_per_s if self.bytes_per_s else None


async def download(hub: Hub, file: HubFile, store: Store, *, first_wait_s: float = 1.0) -> AsyncGenerator[Progress]:
    """Bring all parts of `file` into `store`; close the iterator to pause. Raises HubError.

    A connection that drops or stalls and a hub that is busy are tried again, after waits that double and vary.
    A refusal, a full disk and a wrong hash are final.
    """
    await asyncio.to_thread(store.make_room, file)
    rate = _Rate()
    for number in range(len(file.parts)):
        if store.path(file, number).exists():
            continue
        async with aclosing(_Transfer(hub, file, number, store, first_wait_s).run()) as delays:
            async for delay in delays:
                num_bytes = store.num_bytes(file)
                yield Progress(num_bytes, file.size_bytes, rate.of(num_bytes), delay)
    yield Progress(file.size_bytes, file.size_bytes)


class _Rate:
    """How fast bytes have come lately."""

    def __init__(self) -> None:
        self._lately: deque[tuple[float, int]] = deque()

    def of(self, num_bytes: int) -> float:
        """Bytes per second, now that there are so many."""
        now = asyncio.get_running_loop().time()
        self._lately.append((now, num_bytes))
        while now - self._lately[0][0] > RATE_OVER_S:
            self._lately.popleft()
        since, before = self._lately[0]
        return max(0.0, (num_bytes - before) / (now - since)) if now > since else 0.0


class _Transfer:
    """One part on its way. Its iterators yield after each step: why nothing comes, or an empty text."""

    def __init__(self, hub: Hub, file: HubFile, number: int, store: Store, first_wait_s: float) -> None:
        self._hub = hub
        self._file = file
        self._part = file.parts[number]
        self._path = store.path(file, number)
        self._first_wait_s = first_wait_s

    async def run(self) -> AsyncGenerator[str]:
        output = await self._on_disk(Unfinished, self._path)
        try:
            while not output.is_hashed:
                await self._on_disk(output.hash_more)
                yield "Checking what is here already."
            num_fruitless = 0
            while output.size < self._part.size_bytes:
                before = output.size
                try:
                    async with aclosing(self._attempt(output)) as steps:
                        async for _ in steps:
                            yield ""
                except HubError as exc:
                    num_fruitless = 0 if output.size - before >= MIN_BYTES else num_fruitless + 1
                    if exc.permanent or num_fruitless == MAX_FRUITLESS:
                        raise
                    yield str(exc)
                    await asyncio.sleep(self._wait_s(num_fruitless, exc))
            await self._finish(output)
        finally:
            output.close()

    async def _attempt(self, output: Unfinished) -> AsyncGenerator[None]:
        """Go on where it stands. Under another ETag these are other bytes, and it starts anew."""
        is_resumed = bool(output.size and output.etag)
        headers = {"Range": f"bytes={output.size}-", "If-Range": output.etag} if is_resumed else {}
        async with self._hub.open(self._file, self._part, headers) as response:
            if response.status_code == 200:
                await self._on_disk(output.begin, response.headers.get("ETag", ""))
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {output.size}-"):
                raise HubError(f"The hub sent another piece of {self._part.path} than it was asked for.")
            async with aclosing(_blocks(response, self._hub.silence_s)) as blocks:
                async for block in blocks:
                    await self._on_disk(output.append, block[: self._part.size_bytes - output.size])
                    yield
                    if output.size == self._part.size_bytes:
                        return  # whether more would follow is no matter: the hash judges
        raise HubError(f"The hub ended {self._part.path} at {output.size:,} of {self._part.size_bytes:,} bytes.")

    async def _finish(self, output: Unfinished) -> None:
        if output.sha256 != self._part.sha256:
            await self._on_disk(output.delete)
            raise HubError(
                f"What came as {self._part.path} has the SHA-256 {output.sha256}, but the hub promises "
                f"{self._part.sha256}. It was deleted: download it again, or from another endpoint.",
                permanent=True,
            )
        await self._on_disk(output.finish)

    def _wait_s(self, num_fruitless: int, exc: HubError) -> float:
        doubled = min(LONGEST_WAIT_S, self._first_wait_s * 2.0 ** max(0, num_fruitless - 1))
        return max(doubled * random.uniform(0.5, 1.5), min(exc.retry_after_s, LONGEST_RETRY_AFTER_S))

    async def _on_disk(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Beside the event loop. Whoever cancels waits for its end: the file is closed next."""
        running = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
        try:
            return await asyncio.shield(running)
        except OSError as exc:
            raise disk_error(exc, self._path.parent) from exc
        finally:
            await asyncio.wait([running])


async def _blocks(response: httpx2.Response, silence_s: float) -> AsyncGenerator[bytes]:
    """What comes, in blocks worth a write; the rest, too, where the connection breaks. Raises HubError on a drip."""
    now = asyncio.get_running_loop().time
    block, told_at = bytearray(), now()
    num_bytes, counted_from = 0, now()
    try:
        async for piece in response.aiter_raw():
            block += piece
            num_bytes += len(piece)
            if len(block) >= BLOCK_BYTES or now() - told_at >= BLOCK_S:
                yield bytes(block)
                block.clear()
                told_at = now()
            if now() - counted_from >= silence_s:
                if num_bytes < MIN_BYTES:
                    raise HubError(f"The hub sent {num_bytes:,} bytes in {silence_s:.0f} s, which leads nowhere.")
                num_bytes, counted_from = 0, now()
    except httpx2.TransportError:
        if block:
            yield bytes(block)
        raise
    if block:
        yield bytes(block)
