"""The embedded provider: GGUF files, each served by a worker process of its own.

Loads a model when it is first asked for, and unloads the ones unused for longest when the memory budget
would be exceeded. It knows files and settings; it knows nothing of rows.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from localllm.inference.engine.host import EngineHost
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import ModelRefused, ProviderError
from localllm.inference.types import ChatRequest, Event, Message

MEMORY_SHARE = 0.8  # of the machine's memory, for all loaded models together


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A file as it is to be loaded. Another file or other settings make another worker."""

    path: Path
    settings: EngineSettings
    digest: str = ""


class LlamaCpp:
    name = "llama.cpp"

    def __init__(self, memory_bytes: int | None = None) -> None:
        self._memory_bytes = memory_bytes or int(MEMORY_SHARE * _physical_memory())
        self._hosts: dict[LocalModel, EngineHost] = {}  # the one used last is last

    async def stream(self, model: LocalModel, request: ChatRequest) -> AsyncGenerator[Event]:
        host = await self.host(model)
        try:
            async with aclosing(host.stream(request)) as events:
                async for event in events:
                    yield event
        except ModelRefused as exc:
            self._hosts.pop(model, None)  # the next request tries again: the file may have been mended
            raise ProviderError(str(exc), permanent=True) from exc

    async def count(self, model: LocalModel, messages: tuple[Message, ...]) -> int:
        return await (await self.host(model)).count(messages)

    async def count_texts(self, model: LocalModel, texts: Sequence[str]) -> list[int]:
        return await (await self.host(model)).count_texts(texts)

    async def preview(self, model: LocalModel, messages: tuple[Message, ...]) -> tuple[str, int]:
        return await (await self.host(model)).preview(messages)

    async def host(self, model: LocalModel) -> EngineHost:
        """The running worker of `model`, started if need be. From the main thread's event loop only."""
        host = self._hosts.pop(model, None)
        if host is None:
            if not model.path.is_file():
                raise ProviderError(
                    f"The file of this model is gone: {model.path}. Put it back, or choose another model.",
                    permanent=True,
                )
            await self._unload_stale(model)
            await self._make_room(model)
            host = self._hosts.pop(model, None) or EngineHost(model.path, model.settings)
            host.start()
        self._hosts[model] = host
        return host

    def loaded(self, model: LocalModel) -> EngineHost | None:
        return self._hosts.get(model)

    async def _unload_stale(self, wanted: LocalModel) -> None:
        """The same file, replaced or with other settings: old workers go when they have nothing to do."""
        for model, host in list(self._hosts.items()):
            if model.path == wanted.path and host.num_requests == 0:
                del self._hosts[model]
                await host.stop()

    async def _make_room(self, wanted: LocalModel) -> None:
        """Unload idle models, the one unused for longest first, until `wanted` fits the budget."""
        needed = wanted.path.stat().st_size
        for model, host in list(self._hosts.items()):
            used = sum(m.path.stat().st_size for m in self._hosts if m.path.is_file())
            if used + needed <= self._memory_bytes:
                return
            if host.num_requests == 0:
                del self._hosts[model]
                await host.stop()

    async def unload(self, model: LocalModel) -> None:
        if host := self._hosts.pop(model, None):
            await host.stop()

    async def aclose(self) -> None:
        hosts, self._hosts = self._hosts, {}
        await asyncio.gather(*(host.stop() for host in hosts.values()))


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
