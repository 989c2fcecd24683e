"""The starter model in a worker process, as whoever counts and asks sees it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from localllm.inference.engine.host import EngineHost
from localllm.inference.types import ChatRequest, Event, Message


class Starter:
    """Asks and counts on one host, and remembers what it was asked."""

    def __init__(self, host: EngineHost) -> None:
        self.host = host
        self.requests: list[ChatRequest] = []
        self.num_running = self.most_running = 0

    async def texts(self, texts: Sequence[str]) -> list[int]:
        return await self.host.count_texts(texts)

    async def messages(self, messages: tuple[Message, ...]) -> int:
        return await self.host.count(messages)

    async def ask(self, request: ChatRequest) -> AsyncGenerator[Event]:
        self.requests.append(request)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            async for event in self.host.stream(request):
                yield event
        finally:
            self.num_running -= 1
