"""The one door: every generation, whoever asks, passes through `stream`.

It sends the request to the model's provider, lets the answer go on when the engine dies under it, and
writes the usage log. It knows rows and providers; nothing of HTTP, sockets or conversations.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from uuid import UUID

import msgspec
from django.contrib.auth.models import User

from localllm.gateway import database, serving
from localllm.gateway.models import ApiKey, LanguageModel, LoggedSchema, UsageLog
from localllm.gateway.models.usage import pack_ids, pack_messages
from localllm.gateway.providers import local
from localllm.inference.engine.settings import cpu_name
from localllm.inference.errors import ContextOverflow, EngineDied, ProviderError
from localllm.inference.types import ChatRequest, Chunk, Event, Finished, Message, Started, Usage

log = logging.getLogger(__name__)

MACHINE = cpu_name()[:100]
MAX_DEATHS = 3  # of the engine under one request; more, and the request is likely the cause


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, and through which door: what the usage log says besides the model's part."""

    source: str
    user: User | None = None
    api_key: ApiKey | None = None
    conversation_id: UUID | None = None
    message_id: UUID | None = None
    schema_version_id: UUID | None = None
    template_version_id: UUID | None = None
    template_variables: Mapping[str, str] = field(default_factory=dict)


async def stream(request: ChatRequest, model: LanguageModel, asker: Asker) -> AsyncGenerator[Event]:
    """Answer `request` with `model`. The last event is Finished; close the iterator to cancel.

    Raises ProviderError: its text is for the user. An answer under way survives the end of its engine:
    it goes on from its text in the next one.
    """
    model.check_answers()
    request = _with_seed(request)
    record = _Record()
    try:
        model = await serving.current(model)
        async with aclosing(_survive(request, model, record)) as events:
            async for event in events:
                record.note(event)
                if isinstance(event, Finished):
                    event = msgspec.structs.replace(event, usage=record.usage())
                yield event
    except ProviderError as exc:
        record.error = str(exc)
        raise
    finally:
        # Neither a second cancellation nor a database that is locked for a while may lose the row.
        await asyncio.shield(database.store(_log, request, model, asker, record))


def _with_seed(request: ChatRequest) -> ChatRequest:
    """Draw the seed here, so that it is known even when the answer never ends."""
    if request.params.seed is not None:
        return request
    params = msgspec.structs.replace(request.params, seed=secrets.randbits(31))
    return msgspec.structs.replace(request, params=params)


async def _survive(request: ChatRequest, model: LanguageModel, record: _Record) -> AsyncGenerator[Event]:
    """The provider's events; when the engine dies, those of the next one that continues the text."""
    for num_deaths in range(1, MAX_DEATHS + 1):
        asked = record.continued(request)
        try:
            async with aclosing(serving.stream(model, asked)) as events:
                async for event in events:
                    yield event
            return
        except EngineDied as exc:
            log.warning("%s (%d of %d times)", exc, num_deaths, MAX_DEATHS)
            if num_deaths == MAX_DEATHS:
                raise
            request = msgspec.structs.replace(request, was_accepted=True)
        except ContextOverflow:
            if not asked.was_accepted or not (asked.prefix or asked.reasoning):
                raise
            # It was at the window's end: tokenized again, a text may take more tokens than it was written in.
            yield Finished(reason="length", seed=asked.params.seed or 0, usage=Usage())
            return


@dataclass(slots=True)
class _Record:
    """What is known of one generation while it runs, and after.

    An answer that outlived its engine has the token ids of the last engine's part only.
    """

    asked: ChatRequest | None = None  # of the engine that answered last
    text: str = ""
    reasoning: str = ""
    prompt_ids: tuple[int, ...] = ()
    num_prompt: int = 0  # tokens of what was asked, as the first engine counted them
    output_ids: list[int] = field(default_factory=list)
    num_lost: int = 0  # tokens written by engines that died
    started_at: float = field(default_factory=time.monotonic)
    first_token_at: float | None = None
    finished: Finished | None = None
    error: str = ""

    def note(self, event: Event) -> None:
        match event:
            case Started(prompt_ids=prompt_ids):
                self.prompt_ids = prompt_ids
                self.num_prompt = self.num_prompt or len(prompt_ids)
            case Chunk(text=text, token_ids=token_ids, reasoning=reasoning):
                self.first_token_at = self.first_token_at or time.monotonic()
                self.text += text
                self.reasoning += reasoning
                self.output_ids += token_ids
            case Finished():
                self.finished = event

    def continued(self, request: ChatRequest) -> ChatRequest:
        """The request that goes on where the answer stands; `request` itself when nothing was written."""
        self.num_lost += len(self.output_ids)
        self.output_ids.clear()
        self.asked = request
        if not self.text and not self.reasoning:
            return request
        params = request.params
        if params.max_tokens is not None:
            params = msgspec.structs.replace(params, max_tokens=max(1, params.max_tokens - self.num_lost))
        self.asked = msgspec.structs.replace(
            request, prefix=request.prefix + self.text, reasoning=request.reasoning + self.reasoning, params=params
        )
        return self.asked

    def usage(self) -> Usage:
        """The account as the asker saw it, over all engines that took part."""
        now = time.monotonic()
        own = self.finished.usage if self.finished else Usage()
        return msgspec.structs.replace(
            own,
            prompt_tokens=self.num_prompt,
            completion_tokens=self.num_lost + len(self.output_ids),
            ttft_s=(self.first_token_at or now) - self.started_at,
            duration_s=now - self.started_at,
        )


def _log(request: ChatRequest, model: LanguageModel, asker: Asker, record: _Record) -> None:
    usage = record.usage()
    served = serving.state(model)
    settings: dict[str, object] = msgspec.to_builtins(model.engine_settings)
    asked = record.asked or request
    if asked.response_format is not None:
        LoggedSchema.keep(asked.response_format)
    UsageLog.objects.create(
        **{f.name: getattr(asker, f.name) for f in dataclasses.fields(asker)},
        model=LanguageModel.objects.filter(pk=model.pk).first(),  # it may have been deleted meanwhile
        model_name=model.name,
        model_sha256=model.sha256,
        provider=local.name,
        engine_build=served.build,
        engine_settings={**settings, "n_threads": served.num_threads or model.n_threads},
        machine=MACHINE,
        parameters=_parameters(asked),
        seed=request.params.seed,
        messages=pack_messages((*request.messages, Message("assistant", request.prefix + record.text))),
        prompt_ids=pack_ids(record.prompt_ids),
        output_ids=pack_ids(tuple(record.output_ids)),
        prompt_tokens=usage.prompt_tokens,
        reused_tokens=usage.reused_tokens,
        completion_tokens=usage.completion_tokens,
        queue_ms=round(usage.queue_s * 1000),
        ttft_ms=round(usage.ttft_s * 1000),
        duration_ms=round(usage.duration_s * 1000),
        finish_reason=record.finished.reason if record.finished else "error" if record.error else "cancelled",
        error=record.error,
    )


def _parameters(request: ChatRequest) -> dict[str, object]:
    """The sampling, the digest of the schema that the answer was decoded by, and what it continued, if it did."""
    parameters: dict[str, object] = msgspec.to_builtins(request.params)
    if request.response_format is not None:
        parameters["response_format"] = request.response_format.digest
    for name in ("prefix", "reasoning"):
        if text := getattr(request, name):
            parameters[name] = text
    return parameters
