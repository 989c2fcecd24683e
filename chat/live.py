"""Replies under way. A reply is a task owned by the server; sockets only read it, each with a cursor.

Text is committed before it is shown: one transaction appends the new text of all live replies, and only
then are the readers woken. So nothing is ever shown that a crash would forget.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import msgspec
from django.db import transaction

from chat import attaching, attachments, markdown
from chat.context import compression
from chat.models import Conversation, Message
from localllm.gateway import completions, data_view, database, serving, structured
from localllm.gateway.models import LanguageModel, PromptTemplateVersion, UsageLog
from localllm.inference.errors import InferenceError
from localllm.inference.json_schema.errors import SchemaRefused
from localllm.inference.json_schema.reading import dumps
from localllm.inference.structured import Attempt, StructuredError, StructuredResult, refused
from localllm.inference.summarise import Progress
from localllm.inference.types import ChatRequest, Chunk, Event, Finished, Loading, Prefill, Waiting

log = logging.getLogger(__name__)

REST_S = 0.02  # between two commits; a provider may send each token apart, and several models come out of step
FORM_S = 0.12  # between two states of a form at least
FORM_CHARS_PER_S = 200_000  # of HTML, to one reader
Frame = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Block:
    """A closed piece of markdown: code points `at` to `to` of the text, as HTML."""

    at: int
    to: int
    html: str


@dataclass(frozen=True, slots=True)
class Piece:
    """What one transaction adds to a reply. `is_anew`: its text takes the place of the text before."""

    reply: LiveReply
    text: str
    reasoning: str
    is_anew: bool


@dataclass(eq=False, slots=True)
class LiveReply:
    """One reply while it is written. `text` and `reasoning` are committed; what is new waits for the next commit."""

    message: Message
    text: str
    reasoning: str
    is_resumed: bool = False
    new_text: str = ""
    new_reasoning: str = ""
    is_void: bool = False  # the text that is committed is to go
    thinking_since: float | None = None
    reasoning_ms: int | None = None
    model: LanguageModel | None = None  # that answers
    window: int = 0  # of its context, in tokens
    blocks: list[Block] = field(default_factory=list)
    stage: Frame = field(default_factory=dict)  # what it waits for, before the first token
    has_begun: bool = False  # a task that is cancelled before never runs
    is_ending: bool = False  # it was stopped or is complete, and nothing may keep its end from being stored
    is_over: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def closed_to(self) -> int:
        return self.blocks[-1].to if self.blocks else 0

    @property
    def has_news(self) -> bool:
        return bool(self.new_text or self.new_reasoning or self.is_void)

    def add(self, chunk: Chunk) -> None:
        self.new_text += chunk.text
        self.new_reasoning += chunk.reasoning
        if chunk.reasoning:
            self.thinking_since = self.thinking_since or time.monotonic()
            self.reasoning_ms = round((time.monotonic() - self.thinking_since) * 1000)

    def pending(self) -> Piece:
        return Piece(self, self.new_text, self.new_reasoning, self.is_void)

    def take(self, piece: Piece) -> None:
        """It is committed now."""
        self.new_text = self.new_text[len(piece.text) :]
        self.new_reasoning = self.new_reasoning[len(piece.reasoning) :]
        self.text = piece.text if piece.is_anew else self.text + piece.text
        self.reasoning += piece.reasoning
        self.is_void = False

    def wake(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def render(self) -> None:
        """Render what has become a closed block since the last time. A form is rendered for its readers."""
        if self.message.is_structured:
            return
        tail = self.text[self.closed_to :]
        if length := markdown.num_closed(tail):
            at = self.closed_to
            self.blocks.append(Block(at, at + length, markdown.render(tail[:length])))


@dataclass(frozen=True, slots=True)
class _Question:
    """All that is asked, as the rows have it."""

    request: ChatRequest
    model: LanguageModel
    asker: completions.Asker
    text: str  # as the user wrote it
    schema_text: str | None
    about: str


_live: dict[UUID, LiveReply] = {}
_flusher: asyncio.Task[None] | None = None
_flushing = asyncio.Lock()
_is_draining = False


async def begin(ask: Callable[[], Message]) -> Message:
    """Store a question by `ask`, and begin to write the reply that it returns, also when the asker is gone by then."""

    async def asked() -> Message:
        reply = await database.write(ask)
        start(reply)
        return reply

    return await asyncio.shield(asked())


def start(message: Message, *, is_resumed: bool = False) -> None:
    """Begin, or go on, to write a reply; `is_resumed` after the end of the server. From the event loop.

    One that is over or under way is left alone: whoever did not hear of it may ask again.
    """
    if not message.is_live or message.pk in _live or _is_draining:
        return  # what is live while the server ends goes on at its next start
    reply = _live[message.pk] = LiveReply(message, message.text, message.reasoning, is_resumed)
    reply.render()
    reply.task = asyncio.create_task(_write(reply), name=f"reply {message.pk}")


def stop(message_id: UUID) -> bool:
    """Cancel a reply; its text stays. False if it is not being written here, or ends already."""
    reply = _live.get(message_id)
    if reply is None or reply.is_ending:
        return False
    reply.is_ending = True
    _cancel(reply)
    return True


async def resume_interrupted() -> None:
    """At start: let the replies of a process that died go on from their text."""

    def interrupted() -> list[Message]:
        return list(Message.objects.filter(status__in=Message.LIVE).order_by("created_at"))

    for message in await database.read(interrupted):
        start(message, is_resumed=True)


async def drain(seconds: float) -> None:
    """At shutdown: stop writing. What is committed stays `streaming` and goes on at the next start; what ends, ends."""
    global _is_draining
    _is_draining = True
    for reply in _live.values():
        if not reply.is_ending:
            _cancel(reply)
    if tasks := [reply.task for reply in _live.values() if reply.task]:
        await asyncio.wait(tasks, timeout=seconds)


def _cancel(reply: LiveReply) -> None:
    if reply.task is not None and reply.has_begun:
        reply.task.cancel()


async def tail(message_id: UUID) -> AsyncGenerator[Frame]:
    """Frames for one reader, from the whole state so far to the end of the reply."""
    reply = _live.get(message_id)
    if reply is None:
        yield {"type": "done", "message": str(message_id)}
        return
    view = _FormView(reply) if reply.message.is_structured else _TextView(reply)
    stage: Frame = {}
    cursor = 0  # in the reasoning
    while True:
        # Taken first: while a frame is on its way to a slow reader the reply goes on.
        changed, is_over = reply.changed, reply.is_over
        if reply.stage and reply.stage != stage:
            stage = reply.stage
            yield _frame(reply, "status", **stage)
        if cursor < len(reply.reasoning):
            at, cursor = cursor, len(reply.reasoning)
            yield _frame(reply, "reasoning", at=at, to=cursor, text=reply.reasoning[at:])
        for frame in await view.news():
            yield frame
        if is_over:
            yield _frame(reply, "done")
            return
        await changed.wait()
        await asyncio.sleep(view.pause_s)


class _TextView:
    """Markdown as one reader sees it: the state at first, then what came after the cursor."""

    pause_s = 0.0

    def __init__(self, reply: LiveReply) -> None:
        self._reply = reply
        self._cursor: int | None = None
        self._num_blocks = 0

    async def news(self) -> list[Frame]:
        reply, frames = self._reply, []
        if self._cursor is None:
            self._cursor, self._num_blocks = len(reply.text), len(reply.blocks)
            html = "".join(block.html for block in reply.blocks)
            return [_frame(reply, "reset", html=html, tail=reply.text[reply.closed_to :], to=self._cursor)]
        if self._cursor < len(reply.text):
            at, self._cursor = self._cursor, len(reply.text)
            frames.append(_frame(reply, "text", at=at, to=self._cursor, text=reply.text[at:]))
        for block in reply.blocks[self._num_blocks :]:
            frames.append(_frame(reply, "block", at=block.at, to=block.to, html=block.html))
        self._num_blocks = len(reply.blocks)
        return frames


class _FormView:
    """An answer by a schema as one reader sees it: the form so far, always whole, a large one less often."""

    def __init__(self, reply: LiveReply) -> None:
        self._reply = reply
        self._shown: str | None = None
        self.pause_s = FORM_S

    async def news(self) -> list[Frame]:
        text = self._reply.text
        if text is self._shown:
            return []
        html = await asyncio.to_thread(data_view.render, text)
        self._shown = text
        self.pause_s = max(FORM_S, len(html) / FORM_CHARS_PER_S)
        return [_frame(self._reply, "reset", html=html, tail="", to=len(text))]


def _frame(reply: LiveReply, kind: str, **fields: Any) -> Frame:
    return {"type": kind, "message": str(reply.message.pk), **fields}


# Writing


async def _write(reply: LiveReply) -> None:
    """The life of one reply, to its final state."""
    reply.has_begun = True
    try:
        if reply.is_ending or _is_draining:
            raise asyncio.CancelledError
        outcome = await _generate(reply)
        if isinstance(outcome, StructuredResult):
            await _end(reply, "complete", finish_reason=outcome.finish_reason, result=outcome)
        else:
            await _end(reply, "complete", finish_reason=outcome.reason)
    except asyncio.CancelledError:
        if reply.is_ending:
            await _end(reply, "stopped", finish_reason="cancelled")
        else:
            await _flush()  # the server ends
    except StructuredError as exc:
        reason = {"truncated": "length", "invalid_after_retries": "invalid"}.get(exc.kind, "error")
        await _end(reply, "failed", finish_reason=reason, error=str(exc), text=_best_of(exc))
    except InferenceError as exc:
        await _end(reply, "failed", finish_reason="error", error=str(exc))
    except Exception:
        log.exception("Reply %s failed.", reply.message.pk)
        await _end(reply, "failed", finish_reason="error", error="Something went wrong here. The log says what.")
    finally:
        del _live[reply.message.pk]
        reply.is_over = reply.is_ending
        reply.wake()


async def _generate(reply: LiveReply) -> Finished | StructuredResult:
    await _make_room(reply)
    await _settle_files(reply)

    def prepare() -> _Question:
        related = Conversation.objects.select_related("model", "owner", "template")
        conversation = related.get(pk=reply.message.conversation_id)
        model = conversation.resolved_model()
        template_version, variables = _asked_with(conversation, reply.message, model)
        asker = completions.Asker(
            source="chat",
            user=conversation.owner,
            conversation_id=conversation.pk,
            message_id=reply.message.pk,
            schema_version_id=reply.message.schema_version_id,
            template_version_id=template_version.pk if template_version else None,
            template_variables=variables,
        )
        version = reply.message.schema_version
        request = conversation.request_for(reply.message)
        return _Question(
            msgspec.structs.replace(request, was_accepted=reply.is_resumed),
            model,
            asker,
            text=reply.message.parent.text if reply.message.parent else "",
            schema_text=version.text if version else None,
            about=version.schema.description if version else "",
        )

    question = await database.read(prepare)
    reply.model = question.model
    outcome: Finished | StructuredResult | None = None
    async with aclosing(await _ask(question)) as events:
        async for event in events:
            match event:
                case Attempt(number=number):
                    await _begin_draft(reply, number)
                case Finished() | StructuredResult():
                    outcome = event
                    # By a schema, a Finished alone may be that of an attempt that failed.
                    reply.is_ending = isinstance(event, StructuredResult) or question.schema_text is None
                case _:
                    _note(reply, event)
    assert outcome is not None, "A stream ended without Finished."
    return outcome


async def _make_room(reply: LiveReply) -> None:
    async with aclosing(compression.make_room(reply.message)) as events:
        async for event in events:
            match event:
                case Progress(num_done=done, num_parts=total):
                    reply.stage = {"stage": "compression", "fraction": round(done / total, 2)}
                    reply.wake()
                case _:
                    _note(reply, event)


def _asked_with(
    conversation: Conversation, message: Message, model: LanguageModel
) -> tuple[PromptTemplateVersion | None, dict[str, str]]:
    """The prompt that an answer counts for: around passages where there are any, else the chat's."""
    question = message.parent
    files = list(question.attachments.all()) if question else []
    if question and (template := attachments.template_of(files)):
        return template, attachments.variables(question.text, files)
    version = conversation.prompt_version
    return version, conversation.prompt_variables(model) if version else {}


async def _settle_files(reply: LiveReply) -> None:
    """What the question's files are asked with is stored before the first word of an answer."""
    async with aclosing(attaching.settle(reply.message)) as fractions:
        async for fraction in fractions:
            reply.stage = {"stage": "summary", "fraction": round(fraction, 2)}
            reply.wake()


async def _ask(question: _Question) -> AsyncGenerator[Event | Attempt | StructuredResult]:
    if question.schema_text is None:
        return completions.stream(question.request, question.model, question.asker)
    try:
        schema = await structured.compiler.compile(question.schema_text)
    except SchemaRefused as exc:
        raise refused(exc) from exc
    params = msgspec.structs.replace(question.request.params, num_logprobs=0)  # how sure it is of each field
    request = msgspec.structs.replace(question.request, params=params)
    return structured.stream(
        request, schema, question.model, question.asker, about=question.about, source=question.text
    )


async def _begin_draft(reply: LiveReply, number: int) -> None:
    """What an attempt before this one has written is void."""
    if number > 1:
        async with _flushing:  # what is on its way to the database is not to be cut
            reply.new_text, reply.is_void = "", True
            if reply.reasoning or reply.new_reasoning:
                reply.new_reasoning += "\n\n"


def _note(reply: LiveReply, event: Event) -> None:
    match event:
        case Chunk():
            if reply.model and not reply.window:
                reply.window = serving.state(reply.model).window  # its worker may be gone at the end
            reply.add(event)
            _flush_soon()
            return
        case Loading(fraction=fraction):
            reply.stage = {"stage": "loading", "fraction": round(fraction, 2)}
        case Waiting(place=place, wait_s=wait_s):
            reply.stage = {"stage": "queue", "place": place, "wait_s": wait_s and round(wait_s, 1)}
        case Prefill(num_computed=done, num_tokens=total):
            reply.stage = {"stage": "prefill", "fraction": round(done / total, 2)}
    reply.wake()


def _best_of(error: StructuredError) -> str | None:
    """The text to show in place of the last draft. What was cut off stays as it is: it can go on."""
    return dumps(error.candidate) if error.kind == "invalid_after_retries" and error.candidate is not None else None


async def _end(
    reply: LiveReply,
    status: str,
    *,
    finish_reason: str,
    error: str = "",
    text: str | None = None,
    result: StructuredResult | None = None,
) -> None:
    reply.is_ending = True  # from here on nothing cancels it
    await _flush()
    text = result.text if result else text
    html = await asyncio.to_thread(_final_html, reply, text, result)

    def store() -> None:
        reply.message.end(
            status,
            html=html,
            text=text,
            guarantee=structured.account(result) if result else None,
            reasoning_ms=reply.reasoning_ms,
            model_name=reply.model.name if reply.model else "",
            finish_reason=finish_reason,
            error=error,
            usage=UsageLog.objects.usage_of(reply.message.pk, reply.window),
        )

    await database.store(store)


def _final_html(reply: LiveReply, text: str | None, result: StructuredResult | None) -> str:
    text = reply.text if text is None else text
    if reply.message.is_structured:
        return data_view.render(text, result.fields if result else None)
    return markdown.render(text)


def _flush_soon() -> None:
    global _flusher
    if _flusher is None or _flusher.done():
        _flusher = asyncio.create_task(_flush_news(), name="flusher of replies")


async def _flush_news() -> None:
    """At once, when all that came at the same time has been read, and again while more comes."""
    while any(reply.has_news for reply in _live.values()):
        await _flush()
        await asyncio.sleep(REST_S)


async def _flush() -> None:
    """Commit the new text of all live replies in one transaction, then show it.

    Not cut short when a caller is cancelled: what is committed but not taken would be committed twice.
    """
    await asyncio.shield(_commit_news())


async def _commit_news() -> None:
    async with _flushing:
        batch = [reply.pending() for reply in _live.values() if reply.has_news]
        if not batch:
            return
        await database.store(_commit, batch)
        for piece in batch:
            piece.reply.take(piece)
        await asyncio.to_thread(_render, batch)
        for piece in batch:
            piece.reply.wake()


def _commit(batch: list[Piece]) -> None:
    with transaction.atomic():
        for piece in batch:
            piece.reply.message.append(piece.text, reasoning=piece.reasoning, anew=piece.is_anew)


def _render(batch: list[Piece]) -> None:
    for piece in batch:
        piece.reply.render()
