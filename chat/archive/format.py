"""The export file of this program, version 1, as docs/export.md describes it. Structs only; no rows."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from localllm.inference.compression import KeyFacts

NAME, VERSION = "localllm", 1

Title = Annotated[str, msgspec.Meta(max_length=1_000)]
Time = Annotated[datetime, msgspec.Meta(tz=True)]
Label = Annotated[str, msgspec.Meta(max_length=200)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What later versions add is passed over."""


class FileRecord(Record):
    id: str
    name: str
    text: str
    media_type: Label = "text/plain"
    size_bytes: Count = 0
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
    placement: Literal["automatic", "pinned", "expanded", "excluded"] = "automatic"
    attachments: list[AttachmentRecord] = []
    feedback: FeedbackRecord | None = None


class SummaryRecord(Record):
    """Facts that stand for the messages from the first one to `up_to_id`; `previous_id` is what it was built on."""

    id: str
    up_to_id: str
    facts: KeyFacts
    created_at: Time
    previous_id: str | None = None
    num_messages: Count = 0
    tokens_before: Count = 0
    tokens_after: Count = 0
    model: Annotated[str, msgspec.Meta(max_length=100)] = ""
    edited_at: Time | None = None
    is_undone: bool = False


class ConversationRecord(Record):
    """A whole tree; `leaf_id` is the last message of the branch that is shown."""

    id: str
    messages: list[MessageRecord]
    title: Title = ""
    created_at: Time | None = None
    updated_at: Time | None = None
    is_pinned: bool = False
    is_archived: bool = False
    folder: Label = ""
    model: Annotated[str, msgspec.Meta(max_length=100)] = ""
    system_prompt: str = ""
    settings: dict[str, float] = {}
    leaf_id: str | None = None
    compress_at: Literal[0, 50, 75, 90] = 75  # % of the window; 0 for never
    files: list[FileRecord] = []
    summaries: list[SummaryRecord] = []


def head(exported_at: datetime) -> bytes:
    """The beginning of a file; records between commas and `TAIL` follow."""
    fields = msgspec.json.encode({"format": NAME, "version": VERSION, "exported_at": exported_at})
    return fields[:-1] + b',"conversations":[\n'


TAIL = b"\n]}\n"
encode = msgspec.json.Encoder().encode
