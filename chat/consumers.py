"""One browser tab on one conversation. Parses frames, calls one thing, formats the answer.

From the browser                             To the browser
  send {cid, text, schema?, attachments?}      ack {cid, question, reply}      after the commit
  edit {cid, message, text, schema?}           changed {}                      fetch the messages again
  regenerate {message, schema?}                reset {message, html, tail, to} the whole state; answers resume
  continue {message}                           text {message, at, to, text}    append when `at` is the cursor
  stop {message}                               block {message, at, to, html}   replaces the tail from at to to
  resume {message}                             reasoning {message, at, to, text}  append, or begin where `at` is 0
  compress {again}                             compressing {is_on}             older messages are being summarised
  cancel-compression {}                        status {message, ...}           queue, loading, prefill, compression
                                               done {message, status}          fetch its final form
                                               error {cid?, message}           a sentence; nothing was changed
A cursor is a code-point offset in the reply's text, opaque to the browser. `schema` is the id of one, or null
for an answer without; it holds for the messages to come. `attachments` are [{file, mode, cut_at?}] of
uploaded files. An answer by a schema comes in `reset` frames only:
its form so far as html, at most every 120 ms, also after a draft that was not valid was thrown away.
The socket only reads: a reply belongs to the server, and a closed tab stops nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, cast
from uuid import UUID

from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.auth import HASH_SESSION_KEY
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.models import Session
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.crypto import constant_time_compare

from chat import live
from chat.attachments import FileChoice
from chat.context import compression
from chat.models import Conversation, ConversationError, Message, Summary
from localllm.gateway import database
from localllm.inference.errors import InferenceError

log = logging.getLogger(__name__)

# Applications may close with 1000 or 4000-4999 only.
CLOSE_SIGNED_OUT, CLOSE_NOT_FOUND, CLOSE_MALFORMED = 4001, 4004, 4007
MAX_CID_CHARS = 64

_reports: set[asyncio.Task[None]] = set()


class FrameError(Exception):
    """A frame that is not of the protocol; `str(exc)` says what was expected."""


class ChatConsumer(AsyncWebsocketConsumer):
    async def connect(self) -> None:
        self.conversation_id: UUID = self.scope["url_route"]["kwargs"]["conversation_id"]
        self.group = f"conversation.{self.conversation_id}"
        self.readers: dict[UUID, asyncio.Task[None]] = {}
        await self.accept()
        if not await self._may_use():
            return
        await self.channel_layer.group_add(self.group, self.channel_name)
        if compression.is_under_way(self.conversation_id):
            await self._send({"type": "compressing", "is_on": True})

    async def disconnect(self, code: int) -> None:
        for reader in self.readers.values():
            reader.cancel()  # ends the reading, never the reply
        await self.channel_layer.group_discard(self.group, self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        cid = None
        try:
            frame = _parse(text_data)
            cid = frame.get("cid")  # so that the browser knows which of its messages is meant
            if await self._may_use():
                await OPERATIONS[frame["type"]](self, frame)
        except (FrameError, ConversationError) as exc:
            await self._send({"type": "error", "cid": cid, "message": str(exc)})

    # Every operation is checked anew: a right may end while the socket is open.

    async def _may_use(self) -> bool:
        code = await database.read(self._refusal)
        if code:
            await self.close(code)
        return not code

    def _refusal(self) -> int | None:
        key = self.scope["session"].session_key
        session = Session.objects.filter(session_key=key, expire_date__gt=timezone.now()).first()
        user = User.objects.filter(pk=self._user.pk or 0, is_active=True).first()
        if session is None or user is None:
            return CLOSE_SIGNED_OUT
        # A new password ends all other sessions.
        if not constant_time_compare(session.get_decoded().get(HASH_SESSION_KEY, ""), user.get_session_auth_hash()):
            return CLOSE_SIGNED_OUT
        return None if self._owned().exists() else CLOSE_NOT_FOUND

    @property
    def _user(self) -> User | AnonymousUser:
        return cast(User | AnonymousUser, self.scope["user"])

    def _owned(self) -> QuerySet[Conversation]:
        return Conversation.objects.owned_by(self._user).filter(pk=self.conversation_id)

    def _conversation(self) -> Conversation:
        return self._owned().get()

    def _asked(self, frame: dict[str, Any]) -> Conversation:
        """The conversation, with the schema that the frame chooses."""
        conversation = self._conversation()
        if "schema" in frame:
            conversation.choose_schema(_id(frame, "schema") if frame["schema"] else None)
        return conversation

    def _message(self, id: UUID) -> Message:
        message = Message.objects.filter(pk=id, conversation__in=self._owned()).select_related("parent").first()
        if message is None:
            raise ConversationError("This message is not in this conversation. Reload the page.")
        return message

    # Operations

    async def send_message(self, frame: dict[str, Any]) -> None:
        cid, text, attachments = _cid(frame), _text(frame), _attachments(frame)
        reply = await live.begin(lambda: self._asked(frame).send(cid, text, attachments)[1])
        await self._begun(_ack(cid, reply))

    async def edit(self, frame: dict[str, Any]) -> None:
        cid, text, id = _cid(frame), _text(frame), _message_id(frame)
        reply = await live.begin(lambda: self._asked(frame).edit(cid, self._message(id), text)[1])
        await self._begun(_ack(cid, reply))

    async def regenerate(self, frame: dict[str, Any]) -> None:
        id = _message_id(frame)
        await live.begin(lambda: self._asked(frame).regenerate(self._message(id)))
        await self._begun({"type": "changed"})

    async def continue_reply(self, frame: dict[str, Any]) -> None:
        id = _message_id(frame)
        await live.begin(lambda: self._conversation().continue_reply(self._message(id)))
        await self._begun({"type": "changed"})

    async def stop(self, frame: dict[str, Any]) -> None:
        id = _message_id(frame)
        await database.read(self._message, id)
        live.stop(id)

    async def resume(self, frame: dict[str, Any]) -> None:
        id = _message_id(frame)
        await database.read(self._message, id)
        if reader := self.readers.pop(id, None):
            reader.cancel()
        self.readers[id] = asyncio.create_task(self._read(id), name=f"reader of {id}")

    async def compress(self, frame: dict[str, Any]) -> None:
        """Summarise older messages, or write their summary `again`. It goes on when the tab is closed."""
        again = frame.get("again", False)
        if not isinstance(again, bool):
            raise FrameError("Expected true or false as `again`.")
        task = compression.start(self.conversation_id, again=again)
        report = asyncio.create_task(self._report(task), name=f"report on {self.conversation_id}")
        _reports.add(report)  # outlives this tab: the others are to hear of it
        report.add_done_callback(_reports.discard)

    async def cancel_compression(self, frame: dict[str, Any]) -> None:
        compression.cancel(self.conversation_id)

    async def _report(self, task: asyncio.Task[Summary]) -> None:
        """Tell all tabs that a compression began and ended, and this one what went wrong."""
        await self.channel_layer.group_send(self.group, {"type": "compressing", "is_on": True})
        await asyncio.wait([task])
        await self.channel_layer.group_send(self.group, {"type": "compressing", "is_on": False})
        problem = None if task.cancelled() else task.exception()
        if problem is None:
            await self.channel_layer.group_send(self.group, {"type": "changed"})
            return
        if not isinstance(problem, ConversationError | InferenceError):
            log.error("Conversation %s was not compressed.", self.conversation_id, exc_info=problem)
            problem = ConversationError("Something went wrong here. The log says what.")
        await self.channel_layer.send(self.channel_name, {"type": "refused", "message": str(problem)})

    async def _begun(self, answer: live.Frame) -> None:
        await self._send(answer)
        await self.channel_layer.group_send(self.group, {"type": "changed", "from": self.channel_name})

    # Frames to the browser

    async def _read(self, id: UUID) -> None:
        async with aclosing(live.tail(id)) as frames:
            async for frame in frames:
                await self._send(frame)
        self.readers.pop(id, None)

    async def changed(self, hint: dict[str, Any]) -> None:
        if hint.get("from") != self.channel_name:
            await self._send({"type": "changed"})

    async def compressing(self, hint: dict[str, Any]) -> None:
        await self._send(hint)

    async def refused(self, hint: dict[str, Any]) -> None:
        await self._send({"type": "error", "cid": None, "message": hint["message"]})

    async def _send(self, frame: live.Frame) -> None:
        await self.send(text_data=json.dumps(frame, ensure_ascii=False))


OPERATIONS: dict[str, Callable[[ChatConsumer, dict[str, Any]], Awaitable[None]]] = {
    "send": ChatConsumer.send_message,
    "edit": ChatConsumer.edit,
    "regenerate": ChatConsumer.regenerate,
    "continue": ChatConsumer.continue_reply,
    "stop": ChatConsumer.stop,
    "resume": ChatConsumer.resume,
    "compress": ChatConsumer.compress,
    "cancel-compression": ChatConsumer.cancel_compression,
}


def _ack(cid: str, reply: Message) -> live.Frame:
    return {"type": "ack", "cid": cid, "question": str(reply.parent_id), "reply": str(reply.pk)}


def _parse(text: str | None) -> dict[str, Any]:
    if text is None:
        raise FrameError("A binary frame came; this socket takes JSON text.")
    try:
        frame = json.loads(text)
    except (ValueError, RecursionError):
        raise FrameError("The frame is not JSON.") from None
    if not isinstance(frame, dict) or str(frame.get("type")) not in OPERATIONS:
        raise FrameError(f"Expected an object whose type is one of: {', '.join(OPERATIONS)}.")
    return frame


def _cid(frame: dict[str, Any]) -> str:
    cid = frame.get("cid")
    if not isinstance(cid, str) or not 0 < len(cid) <= MAX_CID_CHARS:
        raise FrameError(f"Expected a cid of 1 to {MAX_CID_CHARS} characters.")
    return cid


def _text(frame: dict[str, Any]) -> str:
    text = frame.get("text")
    if not isinstance(text, str):
        raise FrameError("Expected a text.")
    return text.encode("utf-8", "replace").decode()  # lone surrogates cannot be stored


def _attachments(frame: dict[str, Any]) -> list[FileChoice]:
    try:
        return [
            FileChoice.parse(each["file"], each["mode"], each.get("cut_at")) for each in frame.get("attachments", ())
        ]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        raise FrameError("Expected attachments, each with the id of a file and a mode.") from None


def _message_id(frame: dict[str, Any]) -> UUID:
    return _id(frame, "message")


def _id(frame: dict[str, Any], key: str) -> UUID:
    try:
        return UUID(frame.get(key))
    except (ValueError, TypeError, AttributeError):
        raise FrameError(f"Expected the id of a {key}.") from None
