"""A model's own chat template: messages in, prompt text out. Knows Jinja as Hugging Face's templates use it.

Knows nothing of llama.cpp, tokens or limits: the probe tries a template under CPU and memory limits before
it may serve, and the worker's supervisor bounds each rendering after that. A source that is no template
raises ModelRefused when it is compiled; a rendering that fails raises ProviderError(permanent=True).
"""

from __future__ import annotations

import datetime
import json
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from localllm.inference import reasoning as thinking
from localllm.inference.errors import ModelRefused, ProviderError
from localllm.inference.types import Message

# ChatML, for models without a template of their own: the format most models have seen.
FALLBACK = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MAX_CACHED_HEADS = 64
MAX_REASON = 300  # characters of a template's own error text that are passed on


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt, cut where trust changes.

    Only in trusted segments may the tokenizer read spellings such as `<|im_end|>` as control tokens; an
    untrusted segment is one that somebody typed. `head` is a prefix of the first segment when that is
    trusted: the text before the first user message, the same for everyone with this system prompt; "" when
    nothing can be shared. With `has_bos` the text begins with the BOS token: the tokenizer must not add one.
    With `opens_reasoning` the template has begun the reasoning of the answer.
    """

    segments: tuple[tuple[str, bool], ...]
    head: str
    has_bos: bool
    opens_reasoning: bool = False

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.segments)


class ChatTemplate:
    """A compiled template. `special_tokens` are the spellings of the model's control tokens.

    `tags` are those around the reasoning of a thinking model.
    """

    def __init__(self, source: str, *, bos: str = "", eos: str = "", special_tokens: Collection[str] = ()) -> None:
        self._template = _compile(source or FALLBACK)
        self.tags = thinking.detect(source)
        self._bos = bos
        self._eos = eos
        self._spellings = _Spellings({bos, eos, *special_tokens} - {""})
        self._marker = secrets.token_hex(16)  # stands for a user's text
        self._heads: dict[tuple[str, ...], str] = {}

    def render(self, messages: Sequence[Message], *, prefix: str = "", reasoning: str = "") -> Rendered:
        """The prompt for the next answer, which begins with `prefix`, and before that with `reasoning`.

        A template that takes no system message gets its text in front of the first user message. A
        conversation that a template refuses is tried once more in the plainest form: one system message in
        front, neighbours of the same role joined.
        """
        guard = _Guard(self._spellings)
        text = self._text([Message(m.role, guard.mask(m.content)) for m in messages])
        begun = guard.mask(prefix)
        if self.tags:
            begun = self.tags.begun(text, guard.mask(reasoning), begun)
        segments = guard.split(text + begun)
        first, is_trusted = segments[0] if segments else ("", False)
        return Rendered(
            segments=segments,
            head=self._head(messages, first) if is_trusted else "",
            has_bos=self._has_bos(segments),
            opens_reasoning=self.tags is not None and self.tags.is_open(text),
        )

    def before_next(self, messages: Sequence[Message]) -> Rendered:
        """What the prompt of the next turn begins with, whatever a user will say after `messages`."""
        segments = self._before_user(messages)
        return Rendered(segments, head="", has_bos=self._has_bos(segments))

    def _has_bos(self, segments: tuple[tuple[str, bool], ...]) -> bool:
        return bool(self._bos and segments) and segments[0][1] and segments[0][0].startswith(self._bos)

    def _text(self, messages: list[Message]) -> str:
        if any(m.role == "system" for m in messages) and not self._takes_system:
            return self._run(_plainest(messages, takes_system=False))
        try:
            return self._run(messages)
        except ProviderError:
            plainest = _plainest(messages, takes_system=self._takes_system)
            if plainest == messages:
                raise
            return self._run(plainest)

    @cached_property
    def _takes_system(self) -> bool:
        """Some templates raise on a system message, some drop it without a word."""
        try:
            return self._marker in self._run([Message("system", self._marker), Message("user", "Hello.")])
        except ProviderError:
            return False

    def _head(self, messages: Sequence[Message], text: str) -> str:
        """What comes before the first user message, if `text` begins with it."""
        before = [m.content for m in messages[: _first_user(messages)]]
        if len(before) == len(messages) or any(m.role == "assistant" for m in messages[: len(before)]):
            return ""
        key = tuple(before)
        head = self._heads.get(key)
        if head is None or not text.startswith(head):  # the template may show the date
            if len(self._heads) >= MAX_CACHED_HEADS:
                self._heads.clear()
            head = self._heads[key] = self._render_head(key)
        return head if text.startswith(head) else ""

    def _render_head(self, system: Iterable[str]) -> str:
        segments = self._before_user([Message("system", content) for content in system])
        return segments[0][0] if segments and segments[0][1] else ""

    def _before_user(self, messages: Sequence[Message]) -> tuple[tuple[str, bool], ...]:
        """The segments before the text of a user who speaks after `messages`; none if the template refuses that."""
        guard = _Guard(self._spellings)
        masked = [Message(m.role, guard.mask(m.content)) for m in messages]
        try:
            text = self._text([*masked, Message("user", self._marker)])
        except ProviderError:
            return ()
        before, marker, _ = text.partition(self._marker)
        return guard.split(before) if marker else ()

    def _run(self, messages: list[Message]) -> str:
        try:
            return self._template.render(
                messages=[{"role": m.role, "content": m.content} for m in messages],
                add_generation_prompt=True,
                bos_token=self._bos,
                eos_token=self._eos,
                tools=None,
                documents=None,
            )
        except _Refusal as exc:
            raise ProviderError(
                f"The chat template of this model refuses the conversation: {_reason(exc)}. "
                "Change the messages, or choose another model.",
                permanent=True,
            ) from exc
        except Exception as exc:  # a template is a program of somebody else's: it may raise anything
            raise ProviderError(
                f"The chat template of this model failed: {_reason(exc)}. Choose another model.",
                permanent=True,
            ) from exc


def _first_user(messages: Sequence[Message]) -> int:
    return next((i for i, m in enumerate(messages) if m.role == "user"), len(messages))


def _plainest(messages: Sequence[Message], *, takes_system: bool) -> list[Message]:
    """The same conversation with one system text in front and roles that alternate."""
    system = "\n\n".join(m.content for m in messages if m.role == "system")
    turns = [
        Message(role, "\n\n".join(m.content for m in group))
        for role, group in groupby((m for m in messages if m.role != "system"), key=lambda m: m.role)
    ]
    if not system:
        return turns
    if takes_system:
        return [Message("system", system), *turns]
    at = _first_user(turns)
    if at == len(turns):
        return [Message("user", system), *turns]
    turns[at] = Message("user", f"{system}\n\n{turns[at].content}")
    return turns


class _Spellings:
    """Finds spellings of control tokens in a text, in time linear in its length.

    Some vocabularies have thousands of them, mostly with the same beginning, so one alternation of all
    would be tried in full at every `<`.
    """

    def __init__(self, spellings: Collection[str]) -> None:
        self._spellings = frozenset(spellings)
        self._lengths = sorted({len(spelling) for spelling in spellings}, reverse=True)
        beginnings = {re.escape(spelling[:3]) for spelling in spellings}
        self._beginning = re.compile(f"(?={'|'.join(sorted(beginnings))})" if beginnings else "(?!)")

    def replace(self, text: str, by: Callable[[str], str]) -> str:
        """`text` with each spelling, the longest at each place, replaced."""
        parts, end = [], 0
        for match in self._beginning.finditer(text):
            at = match.start()
            if at >= end and (spelling := self._at(text, at)):
                parts += [text[end:at], by(spelling)]
                end = at + len(spelling)
        return "".join([*parts, text[end:]])

    def _at(self, text: str, at: int) -> str:
        candidates = (text[at : at + length] for length in self._lengths)
        return next((candidate for candidate in candidates if candidate in self._spellings), "")


class _Guard:
    """Carries what people typed through one rendering: random placeholders stand for control tokens."""

    def __init__(self, spellings: _Spellings) -> None:
        self._spellings = spellings
        self._nonce = secrets.token_hex(16)
        self._spelling_of: dict[str, str] = {}  # by placeholder

    def mask(self, text: str) -> str:
        return self._spellings.replace(text, self._placeholder)

    def _placeholder(self, spelling: str) -> str:
        placeholder = f"{self._nonce}{len(self._spelling_of):08x}"
        self._spelling_of[placeholder] = spelling
        return placeholder

    def split(self, text: str) -> tuple[tuple[str, bool], ...]:
        """`text` in segments: (text, is_trusted)."""
        if not self._spelling_of:
            return ((text, True),) if text else ()
        parts = re.split(f"({self._nonce}[0-9a-f]{{8}})", text)
        return tuple(
            (self._spelling_of[part], False) if part in self._spelling_of else (part, True) for part in parts if part
        )


# What templates written for Hugging Face's transformers find there.


class _Refusal(jinja2.TemplateError):
    """The template called raise_exception."""


class _Generation(Extension):
    """`{% generation %}` marks the assistant's tokens for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except Exception as exc:  # syntax, but also nesting too deep for Python's compiler
        raise ModelRefused(
            f"The chat template of this model is not valid Jinja: {_reason(exc)}. Use another file of this model."
        ) from exc


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes HTML, which would put &lt; into the prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    raise _Refusal(str(message))


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _reason(exc: Exception) -> str:
    text = " ".join(str(exc).split())[:MAX_REASON].rstrip(".")
    if isinstance(exc, jinja2.TemplateError) and text:
        return text
    return ": ".join(filter(None, [type(exc).__name__, text]))
