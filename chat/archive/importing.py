"""Conversations of an export file as rows: a job that may be run again at any time and adds nothing twice.

Ids are made from the user, the source and the id there, so the same conversation finds itself again; what it has
grown by since is added. What was not taken over is reported with the reason.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from copy import deepcopy
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone

from chat.archive import sources, splitting
from chat.archive.format import ConversationRecord, FeedbackRecord, MessageRecord, SummaryRecord
from chat.archive.splitting import ArchiveRefused, CutOff, Item
from chat.attachments import Attachment, File, safe_name
from chat.forms import SAMPLING
from chat.models import MAX_FOLDER, Conversation, Message, Summary, folder_name
from localllm.gateway import database
from localllm.gateway.models import Feedback, Job, LanguageModel, PromptTemplate, PromptTemplateVersion
from localllm.gateway.models.feedback import MAX_NOTE
from localllm.inference.compression import TITLES, Fact, KeyFacts

KIND = "import"  # of a job
NAMESPACE = uuid.UUID("7a3f2c58-2f0c-4f5e-9b0a-6a1c3b1f5d11")
MAX_SKIPPED = 200  # that are named; the others are counted
KEPT_FOR_S = 86_400  # a part of an upload that nobody goes on with
NOTHING_FOUND = (
    "No conversation was found in the file. Choose the conversations.json or the ZIP file of ChatGPT, the JSON file of "
    "Open WebUI, or a JSON or ZIP file of LocalLLM."
)


class Report(msgspec.Struct):
    """What came of a file so far; kept in the job, with each conversation's rows."""

    num_items: int = 0
    num_added: int = 0
    num_grown: int = 0
    num_unchanged: int = 0
    num_skipped: int = 0
    num_messages: int = 0
    skipped: list[str] = []
    left_out: dict[str, int] = {}
    cut_off: str = ""

    def skip(self, title: str, reason: str) -> None:
        self.num_skipped += 1
        if len(self.skipped) < MAX_SKIPPED:
            self.skipped.append(f"{title}: {reason}"[:400])


def folder() -> Path:
    path: Path = settings.HOME / "imports"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def begin(owner: User, path: Path, name: str) -> Job:
    """Queue the import of a file that lies in `folder()`, and belongs to the job from now on."""
    parameters = {"file": path.name, "report": msgspec.to_builtins(Report())}
    title, size = safe_name(name), path.stat().st_size
    return Job.objects.create(kind=KIND, title=title, owner=owner, num_total=size, parameters=parameters)


def sweep() -> None:
    """Remove files that no job waits for any more, and uploads that nobody has gone on with."""
    waited_for = {job.parameters["file"] for job in Job.objects.filter(kind=KIND).exclude(state__in=Job.OVER)}
    for path in folder().iterdir():
        if path.name not in waited_for and path.stat().st_mtime < time.time() - KEPT_FOR_S:
            path.unlink(missing_ok=True)


async def run(job: Job) -> None:
    """The kind `import`: goes on behind the last conversation that is stored. Raises ArchiveRefused."""
    path = folder() / job.parameters["file"]
    report = msgspec.convert(job.parameters["report"], Report)
    owner = await database.read(User.objects.get, pk=job.owner_id)
    try:
        items = await asyncio.to_thread(_from, path, report.num_items)
        while (item := await asyncio.to_thread(next, items, None)) is not None:
            report = await database.store(_take, job, owner, item, report)
        if not report.num_items:
            raise ArchiveRefused(NOTHING_FOUND)
    except FileNotFoundError:
        raise ArchiveRefused("The uploaded file is gone. Upload it again: nothing is imported twice.") from None
    except ArchiveRefused:
        path.unlink()
        raise
    path.unlink()


def _from(path: Path, num_done: int) -> Iterator[Item | CutOff]:
    """What is left of the file."""
    items = splitting.read(path)
    for _ in range(num_done):
        next(items, None)
    return items


def _take(job: Job, owner: User, item: Item | CutOff, before: Report) -> Report:
    """Store one conversation together with the report of it."""
    report = deepcopy(before)
    with transaction.atomic():
        if isinstance(item, CutOff):
            report.cut_off = f"The file ends in the middle, after {item.end:,} bytes. All that came whole is imported."
        else:
            _import(owner, item.data, report)
        report.num_items += 1
        job.parameters = {**job.parameters, "report": msgspec.to_builtins(report)}
        Job.objects.filter(pk=job.pk).update(parameters=job.parameters, num_done=min(item.end, job.num_total))
    return report


def _import(owner: User, data: bytes | None, report: Report) -> None:
    number = report.num_items + 1
    if data is None:
        report.skip(f"Conversation {number}", f"it is larger than {splitting.MAX_ITEM >> 20} MB.")
        return
    try:
        found = sources.read(data)
        with transaction.atomic():
            num_new, is_new = store(owner, found.source, found.record)
    except (sources.SourceError, ValueError) as exc:
        report.skip(f"Conversation {number}", str(exc))
        return
    for what, count in found.notes.items():
        if count:
            report.left_out[what] = report.left_out.get(what, 0) + count
    report.num_messages += num_new
    report.num_added += is_new
    report.num_grown += bool(num_new and not is_new)
    report.num_unchanged += not num_new and not is_new


# One conversation


def store(owner: User, source: str, record: ConversationRecord) -> tuple[int, bool]:
    """Add what is not there yet; how many messages that are, and whether the conversation is new.

    Raises ValueError for what makes no conversation.
    """
    if not record.messages:
        raise ValueError(f"“{record.title or 'Untitled'}” holds no message with text.")
    ids = _Ids(owner, source, record)
    messages = list(_from_the_top(record))
    conversation, is_new = _conversation(owner, ids, record)
    there = set(conversation.messages.values_list("pk", flat=True))
    new = [each for each in messages if ids.of(each.id) not in there]
    if new:
        _add_files(conversation, ids, record)
        _add_messages(conversation, ids, new)
        leaf_id = record.leaf_id if record.leaf_id in {each.id for each in messages} else messages[-1].id
        Conversation.objects.filter(pk=conversation.pk).update(leaf=ids.of(leaf_id or messages[-1].id))
    _add_summaries(conversation, ids, record.summaries)
    return len(new), is_new


class _Ids:
    """Ids of the rows. Of our own files they are the old ones where those rows are this user's own."""

    def __init__(self, owner: User, source: str, record: ConversationRecord) -> None:
        self._prefix = f"{owner.pk}/{source}/{record.id}"
        self.conversation = uuid.uuid5(NAMESPACE, self._prefix)
        self._kept: dict[str, uuid.UUID] = {}
        own = Conversation.objects.owned_by(owner).filter(pk=_uuid(record.id)).first() if source == "localllm" else None
        if own is not None:
            self.conversation = own.pk
            rows = (own.messages, own.files, own.summaries)
            self._kept = {str(pk): pk for each in rows for pk in each.values_list("pk", flat=True)}

    def of(self, id: str) -> uuid.UUID:
        return self._kept.get(id) or uuid.uuid5(NAMESPACE, f"{self._prefix}/{id}")


def _uuid(text: str) -> uuid.UUID:
    """No row has the one that stands for what is none."""
    try:
        return uuid.UUID(text)
    except ValueError:
        return uuid.UUID(int=0)


def _conversation(owner: User, ids: _Ids, record: ConversationRecord) -> tuple[Conversation, bool]:
    fields: dict[str, Any] = {
        "title": _clean(record.title)[:200],
        "is_pinned": record.is_pinned,
        "is_archived": record.is_archived,
        "folder": folder_name(_clean(record.folder)[:MAX_FOLDER]),
        "system_prompt": _clean(record.system_prompt),
        "compress_at": record.compress_at,
        "model": LanguageModel.objects.filter(name=record.model).first() if record.model else None,
        "updated_at": record.updated_at or _last_time(record) or timezone.now(),
        **_sampling(record),
    }
    conversation, is_new = Conversation.objects.get_or_create(pk=ids.conversation, owner=owner, defaults=fields)
    if is_new and record.created_at:
        Conversation.objects.filter(pk=conversation.pk).update(created_at=record.created_at)
    return conversation, is_new


def _sampling(record: ConversationRecord) -> dict[str, float]:
    """Settings that the form would take, too."""
    known = {name: value for name, value in record.settings.items() if name in SAMPLING}
    bounds = {name: (least, most) for name, (least, most, *_) in SAMPLING.items()}
    return {
        name: value
        for name, value in known.items()
        if bounds[name][0] <= value and (bounds[name][1] is None or value <= bounds[name][1])  # type: ignore[operator]
    }


def _last_time(record: ConversationRecord) -> datetime | None:
    return max((each.created_at for each in record.messages if each.created_at), default=None)


def _from_the_top(record: ConversationRecord) -> Iterator[MessageRecord]:
    """Each message after its parent; one whose parent is not in the file begins the conversation."""
    by_id = {each.id: each for each in record.messages}
    children: dict[str | None, list[MessageRecord]] = {}
    for each in by_id.values():
        children.setdefault(each.parent_id if each.parent_id in by_id else None, []).append(each)
    waiting = children.get(None, [])[::-1]
    num_found = 0
    while waiting:
        message = waiting.pop()
        num_found += 1
        yield message
        waiting += children.get(message.id, [])[::-1]
    if num_found < len(by_id):
        raise ValueError(f"“{record.title or 'Untitled'}” has messages that follow each other in a circle.")


def _add_files(conversation: Conversation, ids: _Ids, record: ConversationRecord) -> None:
    rows = [
        File(
            pk=ids.of(each.id),
            owner_id=conversation.owner_id,
            conversation=conversation,
            name=safe_name(each.name),
            media_type=each.media_type[:100],
            size_bytes=each.size_bytes,
            text=_clean(each.text),
            num_chars=len(_clean(each.text)),
            page_starts=each.page_starts,
            notes=each.notes,
        )
        for each in record.files
    ]
    File.objects.bulk_create(rows, ignore_conflicts=True)


def _add_messages(conversation: Conversation, ids: _Ids, records: list[MessageRecord]) -> None:
    """Parents first. Versions of a message are told apart by their time, so each gets one."""
    files = set(conversation.files.values_list("pk", flat=True))
    known = set(conversation.messages.values_list("pk", flat=True))
    last = timezone.now()
    attachments: list[Attachment] = []
    feedback: list[Feedback] = []
    rows: list[Message] = []
    for each in records:
        last = each.created_at or last + timedelta(microseconds=1)
        row = _message(conversation, ids, each, last)
        row.parent_id = row.parent_id if row.parent_id in known else None
        known.add(row.pk)
        rows.append(row)
        attachments += _attachments(row, each, ids, files)
        feedback += [_feedback(row, each.feedback)] if each.feedback else []
    Message.objects.bulk_create(rows)
    Attachment.objects.bulk_create(attachments)
    Feedback.objects.bulk_create(feedback, ignore_conflicts=True)


def _message(conversation: Conversation, ids: _Ids, record: MessageRecord, created_at: datetime) -> Message:
    return Message(
        pk=ids.of(record.id),
        conversation=conversation,
        parent_id=ids.of(record.parent_id) if record.parent_id else None,
        role=record.role,
        text=_clean(record.text),
        status=record.status,
        finish_reason=record.finish_reason,
        error=_clean(record.error),
        reasoning=_clean(record.reasoning),
        model_name=record.model,
        guarantee=record.guarantee,
        placement=record.placement,
        created_at=created_at,
    )


def _attachments(row: Message, record: MessageRecord, ids: _Ids, files: set[uuid.UUID]) -> Iterator[Attachment]:
    for place, each in enumerate(record.attachments):
        if (file_id := ids.of(each.file_id)) in files:
            yield Attachment(
                message=row,
                file_id=file_id,
                place=place,
                mode=each.mode,
                cut_at=each.cut_at,
                summary=_clean(each.summary),
                passages=[list(passage) for passage in each.passages],
                template_version=_asked_with() if each.passages else None,
            )


def _asked_with() -> PromptTemplateVersion | None:
    """The words around passages: those of this server, for the file does not bring its own."""
    template = PromptTemplate.objects.in_use().filter(name="rag_query", family="").select_related("current").first()
    return template.current if template else None


def _feedback(row: Message, record: FeedbackRecord) -> Feedback:
    return Feedback(
        user_id=row.conversation.owner_id,
        conversation_id=row.conversation_id,
        message_id=row.pk,
        value=record.value,
        note=_clean(record.note)[:MAX_NOTE],
    )


def _add_summaries(conversation: Conversation, ids: _Ids, records: list[SummaryRecord]) -> None:
    """Those of messages that are here, and not without a fact; each after the one that it was built on."""
    messages = set(conversation.messages.values_list("pk", flat=True))
    known = set(conversation.summaries.values_list("pk", flat=True))
    rows: list[Summary] = []
    for each in records:
        pk, facts = ids.of(each.id), _clean_facts(each.facts)
        if pk in known or ids.of(each.up_to_id) not in messages or not facts.all():
            continue
        previous_id = ids.of(each.previous_id) if each.previous_id else None
        row = Summary(
            pk=pk,
            conversation=conversation,
            up_to_id=ids.of(each.up_to_id),
            previous_id=previous_id if previous_id in known else None,
            num_messages=each.num_messages,
            tokens_before=each.tokens_before,
            model_name=each.model,
            created_at=each.created_at,
            edited_by_id=conversation.owner_id if each.edited_at else None,
            edited_at=each.edited_at,
            is_undone=each.is_undone,
        )
        row.say(facts, each.tokens_after)
        rows.append(row)
        known.add(pk)
    Summary.objects.bulk_create(rows)


def _clean_facts(facts: KeyFacts) -> KeyFacts:
    lists = {name: getattr(facts, name) for name in TITLES}
    return KeyFacts(**{name: tuple(Fact(_clean(f.text), f.is_pinned) for f in found) for name, found in lists.items()})


def _clean(text: str) -> str:
    """What a database can hold: no zeros, no half characters."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()
