"""/v1: what OpenAI's clients ask for, answered by the models of this server.

Parses, passes one request through the door, formats the answer. A client that goes away cancels it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from ninja import NinjaAPI

from localllm.gateway import completions, database, serving
from localllm.gateway.api import access, errors, response_format, sse
from localllm.gateway.api.chat_request import ChatCompletionBody
from localllm.gateway.models import ApiKey, LanguageModel
from localllm.gateway.providers import local
from localllm.inference.errors import ProviderError
from localllm.inference.structured import StructuredResult
from localllm.inference.types import ChatRequest, Chunk, Event, Finished, Loading, TokenLogprob, Usage

OWNED_BY = "localllm"


api = NinjaAPI(urls_namespace="v1", auth=access.BearerKey(), docs_url=None, openapi_url=None)
errors.handle_all(api)


@api.get("/models", url_name="models")
async def list_models(request: HttpRequest) -> dict[str, Any]:
    models = await database.read(lambda: list(LanguageModel.objects.filter(is_enabled=True)))
    rows = [_model_row(model, model.name) for model in models]
    default = [_model_row(model, "default") for model in models if model.is_default]
    return {"object": "list", "data": [*default, *rows]}


@api.get("/models/{name}", url_name="model")
async def retrieve_model(request: HttpRequest, name: str) -> dict[str, Any]:
    return _model_row(await access.find_model(name), name)


@api.post("/chat/completions", url_name="chat-completions")
async def create_chat_completion(request: HttpRequest, body: ChatCompletionBody) -> HttpResponseBase:
    body.check()
    key: ApiKey = request.auth  # type: ignore[attr-defined]
    model = await access.find_answering(body.model)
    rendered = await database.read(body.localllm.render, model, key) if body.localllm else None
    asker = completions.Asker(
        source="api",
        user=key.user,
        api_key=key,
        template_version_id=rendered.version_id if rendered else None,
        template_variables=rendered.variables if rendered else {},
    )
    asked = body.to_request(model, f"user:{key.user_id}", rendered)
    answer = Answer(model, wanted=await response_format.wanted(body.response_format), is_streamed=bool(body.stream))
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        return await sse.respond(_chunks(answer, asked, asker, with_usage))
    await answer.collect(asked, asker)
    return JsonResponse(answer.completion())


urlpatterns = access.addresses(api, "GET /v1/models and POST /v1/chat/completions")


def _model_row(model: LanguageModel, id: str) -> dict[str, Any]:
    return {"id": id, "object": "model", "created": int(model.created_at.timestamp()), "owned_by": OWNED_BY}


# Answers


@dataclass
class Answer:
    """One answer on its way, as the chunks of a stream or as one object."""

    model: LanguageModel
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    text: str = ""
    reasoning: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    wants_logprobs: bool = False
    wanted: response_format.Wanted | None = None
    is_streamed: bool = False
    result: StructuredResult | None = None
    finished: Finished | None = None

    async def events(self, asked: ChatRequest, asker: completions.Asker) -> AsyncGenerator[Event, None]:
        """What the door says, its errors in this API's words."""
        self.wants_logprobs = asked.params.num_logprobs is not None
        try:
            async with aclosing(self._ask(asked, asker)) as events:
                async for event in events:
                    if isinstance(event, StructuredResult):
                        self.result = event
                        continue
                    if isinstance(event, Finished):
                        self.finished = event
                    yield event
        except ProviderError as exc:
            is_loaded = serving.state(self.model).is_loaded
            raise errors.from_provider(exc, is_loaded=is_loaded) from exc

    def _ask(self, asked: ChatRequest, asker: completions.Asker) -> AsyncGenerator[Event | StructuredResult]:
        if self.wanted is None:
            return cast(AsyncGenerator[Event | StructuredResult], completions.stream(asked, self.model, asker))
        return response_format.events(asked, self.wanted, self.model, asker, as_written=self.is_streamed)

    async def collect(self, asked: ChatRequest, asker: completions.Asker) -> None:
        async with aclosing(self.events(asked, asker)) as events:
            async for event in events:
                if isinstance(event, Chunk):
                    self.text += event.text
                    self.reasoning += event.reasoning
                    self.logprobs += map(_logprob, event.logprobs)

    def completion(self) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": self.text, "refusal": None, **_reasoning(self.reasoning)},
            "logprobs": {"content": self.logprobs, "refusal": None} if self.wants_logprobs else None,
            "finish_reason": self._finish_reason(),
        }
        return {**self._head("chat.completion"), "choices": [choice], **self._account()}

    def role_chunk(self) -> dict[str, Any]:
        return self._chunk({"role": "assistant", "content": ""})

    def text_chunk(self, chunk: Chunk) -> dict[str, Any]:
        content = {"content": chunk.text} if chunk.text or not chunk.reasoning else {}
        return self._chunk({**_reasoning(chunk.reasoning), **content}, [_logprob(each) for each in chunk.logprobs])

    def last_chunk(self) -> dict[str, Any]:
        chunk = self._chunk({}, finish_reason=self._finish_reason())
        return {**chunk, "localllm": self._account()["localllm"]}

    def usage_chunk(self) -> dict[str, Any]:
        return {**self._head("chat.completion.chunk"), "choices": [], **self._account()}

    def _chunk(
        self, delta: dict[str, str], logprobs: list[dict[str, Any]] | None = None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
            "finish_reason": finish_reason,
        }
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    @cached_property
    def _build(self) -> str | None:
        return serving.state(self.model).build or None

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": self._build,
        }

    def _finish_reason(self) -> str:
        assert self.finished is not None
        return "length" if self.finished.reason == "length" else "stop"

    def _account(self) -> dict[str, Any]:
        assert self.finished is not None
        usage = self.finished.usage
        return {
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
                "prompt_tokens_details": {"cached_tokens": usage.reused_tokens},
            },
            "localllm": {
                "provider": local.name,
                "model_sha256": self.model.sha256,
                "seed": self.finished.seed,
                "queue_s": round(usage.queue_s, 4),
                "ttft_s": round(usage.ttft_s, 4),
                "tokens_per_s": _tokens_per_s(usage),
                **self._guarantee(),
            },
        }

    def _guarantee(self) -> dict[str, Any]:
        """How the data was made to satisfy its schema."""
        if self.result is None:
            return {}
        return {
            "guarantee": self.result.guarantee,
            "unenforced": [{"path": note.path, "keyword": note.keyword} for note in self.result.unenforced],
            "attempts": self.result.attempts,
            **({"closed": True} if self.result.finish_reason == "closed" else {}),
        }


async def _chunks(
    answer: Answer, asked: ChatRequest, asker: completions.Asker, with_usage: bool
) -> AsyncGenerator[dict[str, Any]]:
    is_begun = False
    async with aclosing(answer.events(asked, asker)) as events:
        async for event in events:
            if not is_begun and not isinstance(event, Loading):
                yield answer.role_chunk()
                is_begun = True
            if isinstance(event, Chunk) and (event.text or event.reasoning or event.logprobs):
                yield answer.text_chunk(event)
    yield answer.last_chunk()
    if with_usage:
        yield answer.usage_chunk()


def _reasoning(text: str) -> dict[str, str]:
    """What other servers of thinking models call it, too."""
    return {"reasoning_content": text} if text else {}


def _tokens_per_s(usage: Usage) -> float | None:
    decode_s = usage.duration_s - usage.ttft_s
    return round((usage.completion_tokens - 1) / decode_s, 2) if usage.completion_tokens > 1 and decode_s > 0 else None


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    return {
        **_token(token.token, token.logprob),
        "top_logprobs": [_token(other, logprob) for other, logprob in token.top],
    }


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    # JSON has no infinity, and a forbidden token's probability is none.
    return {"token": token.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(token)}
