"""Replies under way. A reply is a task owned by the server; sockets only read it, each with a cursor.

Text is committed before it is shown: every 40 ms one transaction appends the new text of all live
replies, and only then are the readers woken. So nothing is ever shown that a crash would forget.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.db import OperationalError, transaction

from chat import markdown
from chat.models import Conversation, Message
from localllm.gateway import completions, database
from localllm.gateway.models import LanguageModel
from localllm.inference.errors import InferenceError
from localllm.inference.types import Chunk, Event, Finished, Loading, Prefill, Usage, Waiting

log = logging.getLogger(__name__)

TICK_S = 0.04
RETRY_S = 1.0
Frame = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Block:
    """A closed piece of markdown: code points `at` to `to` of the text, as HTML."""

    at: int
    to: int
    html: str


@dataclass(eq=False, slots=True)
class LiveReply:
    """One reply while it is written. `text` is what is committed; `new` waits for the next tick."""

    message: Message
    text: str
    new: str = ""
    model_name: str = ""
    blocks: list[Block] = field(default_factory=list)
    stage: Frame = field(default_factory=dict)  # what it waits for, before the first token
    is_over: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def closed_to(self) -> int:
        return self.blocks[-1].to if self.blocks else 0

    def wake(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def render(self) -> None:
        """Render what has become a closed block since the last time."""
        tail = self.text[self.closed_to :]
        if length := markdown.num_closed(tail):
            at = self.closed_to
            self.blocks.append(Block(at, at + length, markdown.render(tail[:length])))


_live: dict[UUID, LiveReply] = {}
_ticker: asyncio.Task[None] | None = None
_flushing = asyncio.Lock()
_is_draining = False


async def start(message: Message) -> None:
    """Begin, or go on, to write a queued reply. From the event loop."""
    global _ticker
    if message.pk in _live or _is_draining:
        return  # at the next start it goes on
    reply = _live[message.pk] = LiveReply(message, message.text)
    reply.render()
    reply.task = asyncio.create_task(_write(reply), name=f"reply {message.pk}")
    if _ticker is None or _ticker.done():
        _ticker = asyncio.create_task(_tick(), name="reply ticker")


def stop(message_id: UUID) -> bool:
    """Cancel a reply; its text stays. False if it is not being written here."""
    reply = _live.get(message_id)
    return reply is not None and reply.task is not None and reply.task.cancel()


async def resume_interrupted() -> None:
    """At start: let the replies of a process that died go on from their text."""

    def interrupted() -> list[Message]:
        return list(Message.objects.filter(status__in=Message.LIVE).order_by("created_at"))

    for message in await database.read(interrupted):
        await start(message)


async def drain(seconds: float) -> None:
    """At shutdown: stop writing. What is committed stays `streaming` and goes on at the next start."""
    global _is_draining
    _is_draining = True
    tasks = [reply.task for reply in _live.values() if reply.task]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)


async def tail(message_id: UUID) -> AsyncGenerator[Frame]:
    """Frames for one reader, from the whole state so far to the end of the reply."""
    reply = _live.get(message_id)
    if reply is None:
        yield {"type": "done", "message": str(message_id)}
        return
    cursor, num_blocks = len(reply.text), len(reply.blocks)
    stage: Frame = {}
    yield _frame(
        reply,
        "reset",
        html="".join(block.html for block in reply.blocks),
        tail=reply.text[reply.closed_to :],
        to=cursor,
    )
    while True:
        changed = reply.changed
        if reply.stage and reply.stage != stage:
            stage = reply.stage
            yield _frame(reply, "status", **stage)
        if cursor < len(reply.text):
            at, cursor = cursor, len(reply.text)
            yield _frame(reply, "text", at=at, to=cursor, text=reply.text[at:cursor])
        while num_blocks < len(reply.blocks):
            block = reply.blocks[num_blocks]
            num_blocks += 1
            yield _frame(reply, "block", at=block.at, to=block.to, html=block.html)
        if reply.is_over:
            yield _frame(reply, "done")
            return
        await changed.wait()


def _frame(reply: LiveReply, kind: str, **fields: Any) -> Frame:
    return {"type": kind, "message": str(reply.message.pk), **fields}


# Writing


async def _write(reply: LiveReply) -> None:
    """The life of one reply, to its final state."""
    try:
        finished = await _generate(reply)
        await _end(reply, "complete", finish_reason=finished.reason, usage=finished.usage)
    except asyncio.CancelledError:
        if _is_draining:
            await _flush()
        else:
            await _end(reply, "stopped", finish_reason="cancelled")
    except InferenceError as exc:
        await _end(reply, "failed", finish_reason="error", error=str(exc))
    except Exception:
        log.exception("Reply %s failed.", reply.message.pk)
        await _end(reply, "failed", finish_reason="error", error="Something went wrong here. The log says what.")
    finally:
        del _live[reply.message.pk]
        reply.is_over = not _is_draining
        reply.wake()


async def _generate(reply: LiveReply) -> Finished:
    def prepare() -> tuple[Any, LanguageModel, Conversation]:
        conversation = Conversation.objects.select_related("model", "owner").get(pk=reply.message.conversation_id)
        return conversation.request_for(reply.message), conversation.resolved_model(), conversation

    request, model, conversation = await database.read(prepare)
    reply.model_name = model.name
    asker = completions.Asker(
        source="chat", user=conversation.owner, conversation_id=conversation.pk, message_id=reply.message.pk
    )
    async with aclosing(completions.stream(request, model, asker)) as events:
        async for event in events:
            if isinstance(event, Finished):
                return event
            _note(reply, event)
    raise AssertionError("A stream ended without Finished.")


def _note(reply: LiveReply, event: Event) -> None:
    match event:
        case Chunk(text=text):
            reply.new += text
            return
        case Loading(fraction=fraction):
            reply.stage = {"stage": "loading", "fraction": round(fraction, 2)}
        case Waiting(place=place, wait_s=wait_s):
            reply.stage = {"stage": "queue", "place": place, "wait_s": wait_s and round(wait_s, 1)}
        case Prefill(num_computed=done, num_tokens=total):
            reply.stage = {"stage": "prefill", "fraction": round(done / total, 2)}
    reply.wake()


async def _end(
    reply: LiveReply, status: str, *, finish_reason: str, error: str = "", usage: Usage | None = None
) -> None:
    await _until_stored(_flush)
    html = await asyncio.to_thread(markdown.render, reply.text)

    async def end() -> None:
        await database.write(
            reply.message.end,
            status,
            html=html,
            model_name=reply.model_name,
            finish_reason=finish_reason,
            error=error,
            usage=usage,
        )

    # A second cancellation must not lose the final state.
    await asyncio.shield(_until_stored(end))


async def _until_stored(store: Callable[[], Awaitable[None]]) -> None:
    """A full disk or a locked database holds a reply up; it loses nothing."""
    while True:
        try:
            return await store()
        except OperationalError as exc:
            log.error("Replies cannot be saved, trying again in %.0f s: %s", RETRY_S, exc)
            await asyncio.sleep(RETRY_S)


async def _tick() -> None:
    while _live:
        await asyncio.sleep(TICK_S)
        await _until_stored(_flush)


async def _flush() -> None:
    """Commit the new text of all live replies in one transaction, then show it."""
    async with _flushing:
        batch = [(reply, reply.new) for reply in _live.values() if reply.new]
        if not batch:
            return
        await asyncio.shield(database.write(_commit, batch))
        for reply, text in batch:
            reply.new = reply.new[len(text) :]
            reply.text += text
        await asyncio.to_thread(_render, batch)
        for reply, _ in batch:
            reply.wake()


def _commit(batch: list[tuple[LiveReply, str]]) -> None:
    with transaction.atomic():
        for reply, text in batch:
            reply.message.append(text)


def _render(batch: list[tuple[LiveReply, str]]) -> None:
    for reply, _ in batch:
        reply.render()
