"""Summaries through the one door: of a text or passages, and of the older turns of a conversation.

Joins models and prompt templates with what `localllm.inference` knows of summaries. Each generation has its own
row in the usage log. Nothing of HTTP or chats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from localllm.gateway import completions, database
from localllm.gateway.models import LanguageModel, PromptTemplate, PromptTemplateVersion
from localllm.gateway.models.usage import subject
from localllm.gateway.providers import local
from localllm.inference import compression
from localllm.inference import summarise as summarising
from localllm.inference.compression import Compressed, KeyFacts
from localllm.inference.errors import ProviderError
from localllm.inference.providers.llamacpp import LocalModel
from localllm.inference.quoting import quote
from localllm.inference.summarise import Progress
from localllm.inference.types import ChatRequest, Event, Message, SamplingParams

TEMPERATURE = 0.2  # what was said counts, not how nicely
NOTHING = "(nothing)"  # where a template has a place for what there is not
NO_FOCUS = "what the text is about"


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
    version = await template(
        "summarization", model, subject(asker.conversation_id, asker.api_key.pk if asker.api_key else None)
    )
    info = await local.info(model.local())
    params = SamplingParams(temperature=TEMPERATURE, stop=tuple(model.stop))

    prompt = _Prompt(version, model, asker)

    def instruct(text: str, max_tokens: int) -> tuple[Message, ...]:
        return prompt.render({"text": text, "max_tokens": str(max_tokens), "focus": focus or NO_FOCUS})

    events = summarising.summarise(
        prompt.ask,
        ChatRequest(messages=(), params=params, owner=owner),
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


async def compress(
    turns: Sequence[Message],
    model: LanguageModel,
    version: PromptTemplateVersion,
    asker: completions.Asker,
    budget_tokens: int,
    *,
    previous: KeyFacts | None = None,
    owner: str = "",
) -> AsyncGenerator[Progress | Compressed]:
    """`turns`, and the `previous` summary, as one summary of at most `budget_tokens`, asked for by `version`.

    The last item is the summary. Close the iterator to cancel. Raises ProviderError; the turns stay as they are.
    The starter model only counts: what it writes about a conversation is worth less than the words that were said.
    """
    if model.is_starter:
        yield await quote(turns, LocalCounter(model.local()), previous=previous, budget_tokens=budget_tokens)
        return
    info = await local.info(model.local())

    prompt = _Prompt(version, model, asker)

    def instruct(summary: str, turns: str, max_tokens: int) -> tuple[Message, ...]:
        return prompt.render({"summary": summary or NOTHING, "turns": turns, "max_tokens": str(max_tokens)})

    items = compression.compress(
        prompt.ask,
        ChatRequest(messages=(), params=SamplingParams(temperature=TEMPERATURE), owner=owner),
        turns,
        instruct,
        LocalCounter(model.local()),
        previous=previous,
        budget_tokens=budget_tokens,
        window=info.window,
    )
    async with aclosing(items):
        async for item in items:
            yield item


async def template(use_case: str, model: LanguageModel, subject: str = "") -> PromptTemplateVersion:
    """What `model` is asked with for a use case, as `PromptTemplate.objects.for_use` chooses it."""
    try:
        return await database.read(PromptTemplate.objects.for_use, use_case, model, subject)
    except PromptTemplate.DoesNotExist as exc:
        raise ProviderError(f"{exc} Restore it in the administration.", permanent=True) from exc


class _Prompt:
    """A version of a template in use. Remembers the values of each text it rendered, for the usage log."""

    def __init__(self, version: PromptTemplateVersion, model: LanguageModel, asker: completions.Asker) -> None:
        self._version, self._model = version, model
        self._asker = dataclasses.replace(asker, template_version_id=version.pk)
        self._values: dict[str, dict[str, str]] = {}

    def render(self, values: dict[str, str]) -> tuple[Message, ...]:
        text = self._version.render(values)
        self._values[text] = values
        return self._model.with_system_prompt((Message("user", text),))

    def ask(self, request: ChatRequest) -> AsyncGenerator[Event]:
        asked = (text for text in self._values if any(text in message.content for message in request.messages))
        values = self._values[max(asked, key=len)]  # a shorter one was rendered to count only
        return completions.stream(request, self._model, dataclasses.replace(self._asker, template_variables=values))
