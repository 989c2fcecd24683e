"""The export file of this program, version 1, as docs/export.md describes it. Structs only; no rows."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

NAME, VERSION = "localllm", 1

Title = Annotated[str, msgspec.Meta(max_length=1_000)]
Time = Annotated[datetime, msgspec.Meta(tz=True)]
Label = Annotated[str, msgspec.Meta(max_length=200)]


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What later versions add is passed over."""


class FileRecord(Record):
    id: str
    name: str
    text: str
    media_type: Label = "text/plain"
    size_bytes: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0
    page_starts: list[int] = []
    notes: list[str] = []


class AttachmentRecord(Record):
    """How a message was sent with a file. `passages` are [number, start, end]."""

    file_id: str
    mode: Literal["full", "summary", "passages", "cut"] = "full"
    cut_at: Annotated[int, msgspec.Meta(ge=1, lt=2**31)] | None = None
    summary: str = ""
    passages: list[tuple[int, int, int]] = []


class FeedbackRecord(Record):
    value: Literal[1, -1]
    note: str = ""


class MessageRecord(Record):
    """`parent_id` makes the tree; several messages with one parent are versions of each other."""

    id: str
    role: Literal["user", "assistant"]
    text: str
    created_at: Time | None = None
    parent_id: str | None = None
    status: Literal["complete", "stopped", "interrupted", "failed"] = "complete"
    finish_reason: Annotated[str, msgspec.Meta(max_length=16)] = ""
    error: str = ""
    reasoning: str = ""
    model: Annotated[str, msgspec.Meta(max_length=100)] = ""
    guarantee: dict[str, Any] = {}  # of an answer by a schema: how it was made valid
    attachments: list[AttachmentRecord] = []
    feedback: FeedbackRecord | None = None


class ConversationRecord(Record):
    """A whole tree; `leaf_id` is the last message of the branch that is shown."""

    id: str
    messages: list[MessageRecord]
    title: Title = ""
    created_at: Time | None = None
    updated_at: Time | None = None
    is_pinned: bool = False
    is_archived: bool = False
    model: Annotated[str, msgspec.Meta(max_length=100)] = ""
    system_prompt: str = ""
    settings: dict[str, float] = {}
    leaf_id: str | None = None
    files: list[FileRecord] = []


def head(exported_at: datetime) -> bytes:
    """The beginning of a file; records between commas and `TAIL` follow."""
    fields = msgspec.json.encode({"format": NAME, "version": VERSION, "exported_at": exported_at})
    return fields[:-1] + b',"conversations":[\n'


TAIL = b"\n]}\n"
encode = msgspec.json.Encoder().encode
