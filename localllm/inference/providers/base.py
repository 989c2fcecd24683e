"""What every provider is: something that answers a chat request with a stream of events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol, TypeVar

from localllm.inference.types import ChatRequest, Event

Model = TypeVar("Model", contravariant=True)


class Provider(Protocol[Model]):
    """`Model` is whatever this provider needs to find the model: a file with settings, or a name."""

    name: str

    def stream(self, model: Model, request: ChatRequest) -> AsyncGenerator[Event]:
        """Yield events, the last one Finished. Closing the iterator cancels the request.

        Raises ProviderError when there is no answer, or no more of it.
        """
        ...

    async def aclose(self) -> None: ...
