"""What a client may send to /v1/chat/completions, and how it becomes a request. Knows no HTTP.

Whatever is not known here is refused by name, unless it changes nothing: a parameter that is silently
ignored is a wrong answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, field_validator

from localllm.gateway.api.errors import ApiError
from localllm.gateway.api.response_format import ResponseFormat, TextFormat
from localllm.gateway.models import ApiKey, LanguageModel, PromptTemplate
from localllm.gateway.models.prompt_template import chat_variables
from localllm.gateway.models.usage import subject
from localllm.inference.prompt_template import TemplateError
from localllm.inference.types import ChatRequest, Message, Role, SamplingParams

MAX_STOPS = 4
MAX_STOP_CHARS = 500
MAX_TOP_LOGPROBS = 20
# Values of other parameters that change nothing; so do null, [] and {}.
NEUTRAL: dict[str, object] = {
    "n": 1,
    "store": False,
    "service_tier": "auto",
    "modalities": ["text"],
}
# Parameters whose every value changes nothing here.
NOTES = frozenset({"user", "metadata", "parallel_tool_calls", "safety_identifier", "prompt_cache_key"})


class Body(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class TextPart(Body):
    type: Literal["text"]
    text: str


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: list[TextPart]

    @field_validator("content", mode="before")
    @classmethod
    def _as_parts(cls, content: Any) -> Any:
        """A plain string is one part of text."""
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        if isinstance(content, list):
            kinds = {part.get("type") for part in content if isinstance(part, dict)} - {"text"}
            if kinds:
                raise ValueError(f"a part of type {kinds.pop()!r} was sent, but models here read text only")
        return content

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content)


class StreamOptions(Body):
    include_usage: bool = False


class TemplateCall(Body):
    """The prompt template to ask with. For the use case `chat` it makes the system message, else the last one."""

    template: str
    variables: dict[str, str] = {}

    def check(self) -> None:
        refuse_unknown(self, "localllm.")
        for name, value in self.variables.items():
            refuse_lone_surrogates(value, f"localllm.variables.{name}")

    def render(self, model: LanguageModel, key: ApiKey) -> Rendered:
        """Looks rows up. Raises ApiError."""
        try:
            template = PromptTemplate.objects.named(self.template, model)
            version = template.version_for(subject(api_key_id=key.pk))
            own = chat_variables(model.system_prompt) if template.use_case == "chat" else {}
            variables = own | self.variables
            role: Role = "system" if template.use_case == "chat" else "user"
            return Rendered(Message(role, version.render(variables)), version.pk, variables)
        except PromptTemplate.DoesNotExist as exc:
            raise ApiError(400, str(exc), param="localllm.template", code="template_not_found") from exc
        except TemplateError as exc:
            raise ApiError(400, str(exc), param="localllm.variables", code="invalid_variables") from exc


@dataclass(frozen=True, slots=True)
class Rendered:
    """The message that a template made, and what it was made of."""

    message: Message
    version_id: UUID
    variables: Mapping[str, str]


class ChatCompletionBody(Body):
    messages: list[ChatMessage]
    model: str = "default"
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=0, le=1_000_000)] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    repeat_penalty: Annotated[float | None, Field(gt=0, le=10)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    seed: Annotated[int | None, Field(ge=0, lt=1 << 32)] = None
    stop: str | list[str] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_TOP_LOGPROBS)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    localllm: TemplateCall | None = None

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = _as_list(stop)
        if len(stops) > MAX_STOPS or not all(0 < len(text) <= MAX_STOP_CHARS for text in stops):
            raise ValueError(f"expected at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters")
        return stop

    def check(self) -> None:
        """Raise ApiError for what cannot be kept: unknown parameters, contradictions, broken text."""
        refuse_unknown(self, "")
        check_messages(self.messages)
        if not self.messages and self.localllm is None:
            raise refusal("messages", "there are none; send at least one, or a template that makes one")
        if self.localllm is not None:
            self.localllm.check()
        for text in _as_list(self.stop):
            refuse_lone_surrogates(text, "stop")
        if self.stop and not isinstance(self.response_format, TextFormat | None):
            raise refusal("stop", "it would cut the JSON that response_format asks for; leave it out")
        if self.stream_options is not None:
            refuse_unknown(self.stream_options, "stream_options.")
            if not self.stream:
                raise refusal("stream_options", "it is allowed only together with stream: true")
        if self.top_logprobs is not None and not self.logprobs:
            raise refusal("top_logprobs", "it is allowed only together with logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise refusal("max_tokens", f"max_completion_tokens says {self.max_completion_tokens}; send one of them")

    def to_request(self, model: LanguageModel, owner: str, rendered: Rendered | None = None) -> ChatRequest:
        """What the model is asked. Its own system prompt speaks where the client sent none."""
        messages = model.with_system_prompt(self._turns(rendered.message if rendered else None))
        return ChatRequest(messages=messages, params=self._params(model), owner=owner)

    def _turns(self, made: Message | None) -> tuple[Message, ...]:
        """The messages, with the one that a template made in its place."""
        messages = turns(self.messages)
        if made is None or not made.content:
            return messages
        if made.role == "user":
            return (*messages, made)
        if any(message.role == "system" for message in messages):
            raise refusal(
                "localllm.template", "it makes the system message, but messages has one; leave one of them out"
            )
        return (made, *messages)

    def _params(self, model: LanguageModel) -> SamplingParams:
        wanted = {
            name: value
            for name in (
                "temperature", "top_p", "top_k", "min_p",
                "repeat_penalty", "frequency_penalty", "presence_penalty", "seed",
            )
            if (value := getattr(self, name)) is not None
        }  # fmt: skip
        defaults = {name: getattr(model, name) for name in ("temperature", "top_p", "top_k", "min_p")}
        return SamplingParams(
            **{**defaults, **wanted},
            stop=self._stops(model),
            max_tokens=self.max_completion_tokens or self.max_tokens or model.max_tokens,
            num_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )

    def _stops(self, model: LanguageModel) -> tuple[str, ...]:
        """The client's, or else the model's own; those would cut JSON."""
        if self.stop is None and isinstance(self.response_format, TextFormat | None):
            return tuple(model.stop)
        return tuple(_as_list(self.stop))


def turns(messages: list[ChatMessage]) -> tuple[Message, ...]:
    roles = {"developer": "system"}
    return tuple(Message(roles.get(each.role, each.role), each.text) for each in messages)  # type: ignore[arg-type]


def check_messages(messages: list[ChatMessage]) -> None:
    for number, message in enumerate(messages):
        for part in (message, *message.content):
            refuse_unknown(part, f"messages[{number}].")
        refuse_lone_surrogates(message.text, f"messages[{number}].content")


def _as_list(stop: str | list[str] | None) -> list[str]:
    return [stop] if isinstance(stop, str) else stop or []


def refuse_unknown(part: Body, prefix: str) -> None:
    for name, value in (part.model_extra or {}).items():
        if name in NOTES or value in (None, [], {}) or (name in NEUTRAL and value == NEUTRAL[name]):
            continue
        raise refusal(f"{prefix}{name}", f"this server does not support it{_or_only(name)}; leave it out")


def _or_only(name: str) -> str:
    return f" with a value other than {NEUTRAL[name]!r}" if name in NEUTRAL else ""


def refuse_lone_surrogates(text: str, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise refusal(param, "it holds half of a surrogate pair, which is no character") from None


def refusal(param: str, why: str) -> ApiError:
    return ApiError(400, f"{param}: {why}.", param=param, code="unsupported_parameter")
