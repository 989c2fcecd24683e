"""Conversations as JSON of our own format, as Markdown, and all of an account in one stream. Rows in, bytes out."""

from __future__ import annotations

import io
import zipfile
from collections.abc import AsyncGenerator, Iterator
from uuid import UUID

from django.contrib.auth.models import User
from django.utils import timezone
from django.utils.text import slugify

from chat.archive import format
from chat.archive.format import (
    AttachmentRecord,
    ConversationRecord,
    FeedbackRecord,
    FileRecord,
    MessageRecord,
    SummaryRecord,
)
from chat.attachments import Attachment
from chat.forms import SAMPLING
from chat.models import Conversation, Message, Summary
from localllm.gateway import database
from localllm.gateway.models import Feedback

MAX_NAME = 60


def record(conversation: Conversation) -> ConversationRecord:
    """All of it: every branch, its summaries, the texts of its files, and what its owner thought of the answers."""
    messages = list(conversation.messages.prefetch_related("attachments").order_by("created_at"))
    feedback = Feedback.objects.filter(user=conversation.owner_id).on(message.pk for message in messages)
    return ConversationRecord(
        id=str(conversation.pk),
        title=conversation.title,
        created_at=conversation.created_at,
        updated_at=conversation.updated_at,
        is_pinned=conversation.is_pinned,
        is_archived=conversation.is_archived,
        folder=conversation.folder,
        model=conversation.model.name if conversation.model else "",
        system_prompt=conversation.system_prompt,
        settings={name: value for name in SAMPLING if (value := getattr(conversation, name)) is not None},
        leaf_id=str(conversation.leaf_id) if conversation.leaf_id else None,
        compress_at=conversation.compress_at,  # type: ignore[arg-type]
        messages=[_message(message, feedback.get(message.pk)) for message in messages],
        files=[
            FileRecord(
                id=str(file.pk),
                name=file.name,
                text=file.text,
                media_type=file.media_type,
                size_bytes=file.size_bytes,
                page_starts=file.page_starts,
                notes=file.notes,
            )
            for file in conversation.files.all()
        ],
        summaries=[_summary(summary) for summary in conversation.summaries.order_by("created_at")],
    )


def _message(message: Message, feedback: Feedback | None) -> MessageRecord:
    return MessageRecord(
        id=str(message.pk),
        parent_id=str(message.parent_id) if message.parent_id else None,
        role=message.role,  # type: ignore[arg-type]
        text=message.text,
        created_at=message.created_at,
        status="interrupted" if message.is_live else message.status,  # type: ignore[arg-type]
        finish_reason=message.finish_reason,
        error=message.error,
        reasoning=message.reasoning,
        model=message.model_name,
        guarantee=message.guarantee,
        placement=message.placement,  # type: ignore[arg-type]
        attachments=[_attachment(each) for each in message.attachments.all()],
        feedback=FeedbackRecord(value=feedback.value, note=feedback.note) if feedback else None,  # type: ignore[arg-type]
    )


def _attachment(attachment: Attachment) -> AttachmentRecord:
    return AttachmentRecord(
        file_id=str(attachment.file_id),
        mode=attachment.mode,  # type: ignore[arg-type]
        cut_at=attachment.cut_at,
        summary=attachment.summary,
        passages=[(number, start, end) for number, start, end in attachment.passages],
    )


def _summary(summary: Summary) -> SummaryRecord:
    return SummaryRecord(
        id=str(summary.pk),
        up_to_id=str(summary.up_to_id),
        facts=summary.facts,
        created_at=summary.created_at,
        previous_id=str(summary.previous_id) if summary.previous_id else None,
        num_messages=summary.num_messages,
        tokens_before=summary.tokens_before,
        tokens_after=summary.tokens_after,
        model=summary.model_name,
        edited_at=summary.edited_at,
        is_undone=summary.is_undone,
    )


def json(conversation: Conversation) -> bytes:
    """A file with this conversation only."""
    return format.head(timezone.now()) + format.encode(record(conversation)) + format.TAIL


def markdown(conversation: Conversation) -> str:
    """The branch that is shown, for reading; JSON has all branches."""
    lines = [f"# {conversation}", "", f"{conversation.created_at:%Y-%m-%d %H:%M} UTC", ""]
    for message in conversation.branch():
        lines += [f"## {'You' if message.role == 'user' else message.model_name or 'Answer'}", "", message.text, ""]
        files = [f"- {each.file.name} ({each.form})" for each in message.attachments.all()]
        lines += ["Attached:", "", *files, ""] if files else []
    return "\n".join(lines)


def file_name(conversation: Conversation, suffix: str) -> str:
    return f"{slugify(str(conversation))[:MAX_NAME] or 'chat'}.{suffix}"


# A whole account, one conversation in memory at a time


async def account_json(owner: User) -> AsyncGenerator[bytes]:
    yield format.head(timezone.now())
    is_first = True
    async for conversation in _conversations(owner):
        data = await database.read(lambda each=conversation: format.encode(record(each)))  # type: ignore[misc]
        yield data if is_first else b",\n" + data
        is_first = False
    yield format.TAIL


async def account_zip(owner: User) -> AsyncGenerator[bytes]:
    """`conversations.json`, and each conversation as Markdown."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("conversations.json", "w", force_zip64=True) as part:
            async for data in account_json(owner):
                part.write(data)
                yield pipe.take()
        names: set[str] = set()
        async for conversation in _conversations(owner):
            text = await database.read(markdown, conversation)
            archive.writestr(_unused(f"markdown/{file_name(conversation, 'md')}", names), text)
            yield pipe.take()
    yield pipe.take()


async def _conversations(owner: User) -> AsyncGenerator[Conversation]:
    own = Conversation.objects.owned_by(owner)
    ids: list[UUID] = await database.read(lambda: list(own.order_by("created_at").values_list("pk", flat=True)))
    for id in ids:
        found = await database.read(own.select_related("model").filter(pk=id).first)
        if found is not None:  # it may have been deleted meanwhile
            yield found


def _unused(name: str, names: set[str]) -> str:
    stem, suffix = name.rsplit(".", 1)
    candidates: Iterator[str] = (f"{stem}-{number}.{suffix}" if number > 1 else name for number in range(1, 1 << 30))
    free = next(each for each in candidates if each not in names)
    names.add(free)
    return free


class _Pipe(io.RawIOBase):
    """What a ZIP file is written to, and taken from piece by piece."""

    def __init__(self) -> None:
        self._data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._data += data
        return len(data)

    def take(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data
