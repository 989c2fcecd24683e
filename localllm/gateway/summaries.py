"""Summaries through the one door: of a text or passages. Each generation has its own row in the usage log.

Joins models and prompt templates with what `localllm.inference` knows of summaries. Nothing of HTTP or chats.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from localllm.gateway import completions
from localllm.gateway.models import LanguageModel
from localllm.gateway.providers import local
from localllm.inference.providers.llamacpp import LocalModel
from localllm.inference.summarise import Progress
from localllm.inference.summarise import summarise as summarise_passages
from localllm.inference.types import ChatRequest, Event, Message, SamplingParams

TEMPERATURE = 0.2  # what was said counts, not how nicely


class LocalCounter:
    """Counts as a local model does; loads it if need be."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model

    async def texts(self, texts: Sequence[str]) -> list[int]:
        return await local.count_texts(self._model, texts)

    async def messages(self, messages: tuple[Message, ...]) -> int:
        return await local.count(self._model, messages)


async def summarise(
    text: str | Sequence[str],
    model: LanguageModel,
    asker: completions.Asker,
    max_tokens: int,
    *,
    focus: str = "",
    owner: str = "",
) -> AsyncGenerator[Progress | Event]:
    """A summary of `text`, or of passages, in at most `max_tokens`, with an eye on `focus`.

    Progress events while parts are read, then the events of the final answer, the last one Finished. Close the
    iterator to cancel. `owner`, as in ChatRequest: whose turn in the queue it takes. Raises ProviderError.
    """
    info = await (await local.host(model.local())).wait_until_ready()
    request = ChatRequest(
        messages=(), params=SamplingParams(temperature=TEMPERATURE, stop=tuple(model.stop)), owner=owner
    )

    def ask(request: ChatRequest) -> AsyncGenerator[Event]:
        return completions.stream(request, model, asker)

    def instruct(text: str, max_tokens: int) -> tuple[Message, ...]:
        about = f" Pay attention to: {focus}." if focus else ""
        told = (
            f"Summarise the text below in at most {max_tokens} tokens.{about} Keep names, numbers and decisions. "
            f"Answer with the summary only.\n\nText:\n{text}"
        )
        return model.with_system_prompt((Message("user", told),))

    events = summarise_passages(
        ask,
        request,
        [text] if isinstance(text, str) else text,
        instruct,
        LocalCounter(model.local()),
        max_tokens=max_tokens,
        window=info.window,
        num_parallel=info.num_slots,
    )
    async with aclosing(events):
        async for event in events:
            yield event
