"""/api/local-llm: data by a schema, and the parameters of a function, for programs with a key.

Parses, passes one request through the door, formats the answer. A client that goes away cancels it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from ninja import NinjaAPI
from pydantic import BeforeValidator, Field

from localllm.gateway import completions, database, serving, structured
from localllm.gateway.api import access, errors, response_format, sse
from localllm.gateway.api.chat_request import (
    Body,
    ChatMessage,
    check_messages,
    refusal,
    refuse_lone_surrogates,
    refuse_unknown,
    turns,
)
from localllm.gateway.api.errors import ApiError
from localllm.gateway.api.response_format import Wanted
from localllm.gateway.models import ApiKey, LanguageModel
from localllm.gateway.providers import local
from localllm.inference.errors import ProviderError
from localllm.inference.function_parameters import nullable_parameters, split_missing
from localllm.inference.json_schema.errors import SchemaRefused
from localllm.inference.structured import StructuredError, StructuredResult
from localllm.inference.types import ChatRequest, Chunk, Event, Message
from schemas_app.models import Schema, SchemaVersion

SAMPLING = ("temperature", "max_tokens", "seed")

api = NinjaAPI(urls_namespace="native", auth=access.BearerKey(), docs_url=None, openapi_url=None)
errors.handle_all(api)


class AskBody(Body):
    model: str = "default"
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    seed: Annotated[int | None, Field(ge=0, lt=1 << 32)] = None

    @property
    def sampling(self) -> dict[str, Any]:
        return {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}


def _slug_or_schema(value: Any) -> Any:
    if not isinstance(value, str | dict | bool):
        raise ValueError("expected the slug of a stored schema, or a JSON Schema as an object")
    return value


class StructuredBody(AskBody):
    schema_: Annotated[str | dict[str, Any] | bool, Field(alias="schema"), BeforeValidator(_slug_or_schema)]
    input: str | None = None
    messages: Annotated[list[ChatMessage] | None, Field(min_length=1)] = None
    compact: bool = False
    stream: bool = False

    def check(self) -> None:
        """Raise ApiError for what cannot be kept: unknown parameters, contradictions, broken text."""
        refuse_unknown(self, "")
        if (self.input is None) == (self.messages is None):
            raise refusal("input", "send either input, a text, or messages, a conversation")
        refuse_lone_surrogates(self.input or "", "input")
        check_messages(self.messages or [])
        if self.conversation[-1].role != "user":
            raise refusal("messages", "the last one must be of the role user: it is what is asked")

    @property
    def conversation(self) -> tuple[Message, ...]:
        return turns(self.messages) if self.messages else (Message("user", self.input or ""),)


class ExtractBody(AskBody):
    message: str
    function: dict[str, Any]

    def check(self) -> None:
        """Raise ApiError for unknown parameters and broken text."""
        refuse_unknown(self, "")
        refuse_lone_surrogates(self.message, "message")


@api.post("/structured", url_name="structured")
async def create_structured(request: HttpRequest, body: StructuredBody) -> HttpResponseBase:
    body.check()
    key: ApiKey = request.auth  # type: ignore[attr-defined]
    model = await access.find_answering(body.model)
    version = await _find_version(body.schema_, key)
    try:
        schema = await structured.compiler.compile(version.text, whitespace="compact" if body.compact else "bounded")
    except SchemaRefused as exc:
        raise errors.from_refused_schema(exc, "schema") from exc
    stored_id = version.pk if isinstance(body.schema_, str) else None
    question = Question(
        request=version.question(model, *body.conversation, owner=f"user:{key.user_id}", **body.sampling),
        wanted=Wanted(schema, version.schema.description, source=body.conversation[-1].content),
        model=model,
        asker=completions.Asker(source="api", user=key.user, api_key=key, schema_version_id=stored_id),
        schema_param="schema",
    )
    if body.stream:
        return await sse.respond(question.pieces())
    result = await question.result()
    return JsonResponse({"data": result.data, **question.account(result)})


@api.post("/extract-parameters", url_name="extract-parameters")
async def extract_parameters(request: HttpRequest, body: ExtractBody) -> JsonResponse:
    body.check()
    key: ApiKey = request.auth  # type: ignore[attr-defined]
    model = await access.find_answering(body.model)
    try:
        function = nullable_parameters(body.function)
        schema = await structured.compiler.compile(function.schema_text)
    except SchemaRefused as exc:
        raise errors.from_refused_schema(exc, "function") from exc
    question = Question(
        request=SchemaVersion().question(
            model, Message("user", body.message), owner=f"user:{key.user_id}", **body.sampling
        ),
        wanted=Wanted(schema, function.about),
        model=model,
        asker=completions.Asker(source="api", user=key.user, api_key=key),
        schema_param="function",
    )
    result = await question.result()
    try:
        parameters, missing = split_missing(result.data, function)
    except StructuredError as exc:
        raise question.error(exc) from exc
    return JsonResponse(
        {"name": function.name, "parameters": parameters, "missing": missing, **question.account(result)}
    )


urlpatterns = access.addresses(api, "POST /api/local-llm/structured and POST /api/local-llm/extract-parameters")


async def _find_version(schema: str | dict[str, Any] | bool, key: ApiKey) -> SchemaVersion:
    """The newest version of the schema with that slug, or one for this request only."""
    if not isinstance(schema, str):
        return SchemaVersion(schema=Schema(), text=response_format.schema_text(schema))

    def find() -> SchemaVersion | None:
        versions = SchemaVersion.objects.filter(schema__in=Schema.objects.visible_to(key.user), schema__slug=schema)
        return versions.select_related("schema").first()

    version = await database.read(find)
    if version is None:
        raise ApiError(
            404,
            f"There is no schema {schema!r} that this key's user may use. Send the slug of one from the schemas "
            "page, or a JSON Schema as an object.",
            param="schema",
            code="schema_not_found",
        )
    return version


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request by a schema, ready for the door. `schema_param`: where the client sent the schema."""

    request: ChatRequest
    wanted: Wanted
    model: LanguageModel
    asker: completions.Asker
    schema_param: str

    async def result(self) -> StructuredResult:
        async with aclosing(self._events(as_written=False)) as events:
            return [event async for event in events if isinstance(event, StructuredResult)][-1]

    async def pieces(self) -> AsyncGenerator[dict[str, Any]]:
        """The text as it is written, if every keyword is enforced meanwhile; then the result."""
        async with aclosing(self._events(as_written=True)) as events:
            async for event in events:
                if isinstance(event, StructuredResult):
                    yield {"data": event.data, **self.account(event)}
                elif isinstance(event, Chunk) and event.text and self.wanted.schema.is_exact:
                    yield {"delta": event.text}

    def account(self, result: StructuredResult) -> dict[str, Any]:
        """All that is said of a result beside its data."""
        return {**structured.account(result), "provider": local.name, "model": self.model.name}

    def error(self, exc: ProviderError) -> ApiError:
        is_loaded = serving.state(self.model).is_loaded
        return errors.from_provider(exc, is_loaded=is_loaded, schema_param=self.schema_param)

    async def _events(self, *, as_written: bool) -> AsyncGenerator[Event | StructuredResult]:
        events = response_format.events(self.request, self.wanted, self.model, self.asker, as_written=as_written)
        try:
            async with aclosing(events):
                async for event in events:
                    yield event
        except ProviderError as exc:
            raise self.error(exc) from exc
