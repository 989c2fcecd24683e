"""Files in messages: the text of each, once, and in what form a message hands it to the model. Knows rows only."""

from __future__ import annotations

import re
import unicodedata
import uuid
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import PurePath
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from django.db import models
from django.db.models import Q
from django.utils import timezone

from localllm.gateway.models import PromptTemplateVersion
from localllm.inference.documents.extraction import Extract

MAX_NAME = 120
MAX_ATTACHMENTS = 20  # of one message
UNSENT_FOR = timedelta(days=1)  # then a file that was never sent is forgotten


@dataclass(frozen=True, slots=True)
class FileChoice:
    """A file that a message is to be sent with, and how."""

    file_id: uuid.UUID
    mode: str
    cut_at: int | None

    @classmethod
    def parse(cls, file: str, mode: str, cut_at: int | str | None) -> FileChoice:
        """Raises ValueError or TypeError."""
        if mode not in Attachment.MODES:
            raise ValueError(f"{mode!r} is none of {', '.join(Attachment.MODES)}.")
        return cls(uuid.UUID(file), mode, int(cut_at or 0) if mode == "cut" else None)


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a file that the model was shown under `number`; numbers run on through a branch."""

    number: int
    start: int
    end: int
    file: File

    @property
    def text(self) -> str:
        return self.file.text[self.start : self.end]

    @property
    def source(self) -> str:
        page = self.file.page_at(self.start)
        return f"{self.file.name}, page {page}" if page else self.file.name


class FileQuerySet(models.QuerySet["File"]):
    def owned_by(self, user: User | AnonymousUser) -> FileQuerySet:
        return self.filter(owner_id=user.pk) if user.pk else self.none()

    def add(self, owner: User, name: str, size_bytes: int, extract: Extract) -> File:
        """Keep what a file says. Files that this owner has never sent are forgotten after a day."""
        self.filter(owner=owner, conversation=None, created_at__lt=timezone.now() - UNSENT_FOR).delete()
        return self.create(
            owner=owner,
            name=safe_name(name),
            size_bytes=size_bytes,
            media_type=extract.media_type,
            text=extract.text,
            num_chars=len(extract.text),
            page_starts=list(extract.page_starts),
            notes=list(extract.notes),
        )


class File(models.Model):
    """The text of one file. It belongs to nobody's chat until it is sent, and then goes with that chat."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="files")
    conversation = models.ForeignKey("chat.Conversation", null=True, on_delete=models.CASCADE, related_name="files")
    name = models.CharField(max_length=MAX_NAME)
    media_type = models.CharField(max_length=100)
    size_bytes = models.PositiveIntegerField()
    text = models.TextField()
    num_chars = models.PositiveIntegerField()
    page_starts = models.JSONField(default=list, help_text="Offsets in the text, where the file has pages.")
    notes = models.JSONField(default=list, help_text="What could not be taken over, in sentences.")
    created_at = models.DateTimeField(default=timezone.now)

    objects = FileQuerySet.as_manager()

    class Meta:
        ordering = ("created_at",)

    def __str__(self) -> str:
        return self.name

    def page_at(self, offset: int) -> int | None:
        return bisect_right(self.page_starts, offset) if self.page_starts else None

    def cut(self, offset: int) -> str:
        """Where it is cut, in words."""
        page = self.page_at(max(0, offset - 1))
        return f"cut after {f'page {page}, ' if page else ''}{offset:,} of {self.num_chars:,} characters"


class AttachmentQuerySet(models.QuerySet["Attachment"]):
    def shown(self) -> AttachmentQuerySet:
        """With what a page shows of them; the texts come when they are asked for."""
        return self.read().defer("file__text")

    def read(self) -> AttachmentQuerySet:
        """With all that a model reads of them."""
        return self.select_related("file", "template_version__template")

    def attach(self, message: Any, choices: Sequence[FileChoice]) -> None:
        """Raises ValueError with a sentence where a file is not the user's, or belongs to another chat."""
        if len(choices) > MAX_ATTACHMENTS:
            raise ValueError(f"{len(choices)} files are attached; {MAX_ATTACHMENTS} at most are taken. Leave some out.")
        conversation = message.conversation
        usable = File.objects.filter(Q(conversation=None) | Q(conversation=conversation), owner=conversation.owner_id)
        files = usable.defer("text").in_bulk([choice.file_id for choice in choices])
        for place, choice in enumerate(choices):
            file = files.get(choice.file_id)
            if file is None:
                raise ValueError("A file is not here any more. Remove it, and attach it again.")
            cut_at = None if choice.cut_at is None else max(1, min(choice.cut_at, file.num_chars))
            self.create(message=message, file=file, place=place, mode=choice.mode, cut_at=cut_at)
        File.objects.filter(pk__in=files).update(conversation=conversation)

    def copy(self, old: Any, new: Any) -> None:
        """The files of a message for another way of asking; which passages count is for the new words to say."""
        for each in old.attachments.all():
            self.create(
                message=new,
                file_id=each.file_id,
                place=each.place,
                mode=each.mode,
                cut_at=each.cut_at,
                summary=each.summary,
            )


class Attachment(models.Model):
    """A file in a message. What stands for it in the prompt is stored, so that it stays the same."""

    MODES = ("full", "summary", "passages", "cut")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    message = models.ForeignKey("chat.Message", on_delete=models.CASCADE, related_name="attachments")
    file = models.ForeignKey(File, on_delete=models.CASCADE, related_name="attachments")
    place = models.PositiveSmallIntegerField()
    mode = models.CharField(max_length=8, choices=[(mode, mode) for mode in MODES])
    cut_at = models.PositiveIntegerField(null=True, help_text="Characters that are sent of it in mode cut.")
    summary = models.TextField(blank=True)
    passages = models.JSONField(default=list, help_text="[number, start, end] of each, in the order of reading.")
    template_version = models.ForeignKey(
        PromptTemplateVersion, null=True, on_delete=models.RESTRICT, help_text="What the passages were asked with."
    )

    objects = AttachmentQuerySet.as_manager()

    class Meta:
        ordering = ("place",)

    def __str__(self) -> str:
        return f"{self.file} ({self.mode})"

    @property
    def is_settled(self) -> bool:
        """Whether what stands for it in the prompt is known."""
        return bool({"summary": self.summary, "passages": self.template_version_id}.get(self.mode, True))

    @property
    def shown_passages(self) -> list[Passage]:
        return [Passage(number, start, end, self.file) for number, start, end in self.passages]

    @property
    def form(self) -> str:
        """In what form it was sent, in words."""
        match self.mode:
            case "cut":
                return self.file.cut(self.cut_at or 0)
            case "passages":
                return f"{len(self.passages)} passages" if self.passages else "relevant passages"
            case "summary":
                return "summary"
        return "in full"

    @property
    def block(self) -> str:
        """What stands for the whole file in the prompt; nothing for passages, which stand around the question."""
        match self.mode:
            case "full":
                return _block(self.file.name, self.file.text)
            case "cut":
                return _block(f"{self.file.name} ({self.form})", self.file.text[: self.cut_at])
            case "summary":
                return _block(f"Summary of {self.file.name}", self.summary) if self.summary else ""
        return ""


def compose(text: str, attachments: Iterable[Attachment]) -> str:
    """The message as the model reads it: files first, then passages, the question last."""
    attachments = list(attachments)
    if (template := template_of(attachments)) is not None:
        text = template.render(variables(text, attachments))
    return "\n\n".join([*(each.block for each in attachments if each.block), text])


def template_of(attachments: Iterable[Attachment]) -> PromptTemplateVersion | None:
    """What the passages among them are asked with."""
    return next((each.template_version for each in attachments if each.template_version), None)


def variables(text: str, attachments: Iterable[Attachment]) -> dict[str, str]:
    """The values for that template."""
    passages = [passage for each in attachments for passage in each.shown_passages]
    listed = "\n\n".join(f"[{each.number}] ({each.source})\n{each.text}" for each in passages)
    return {"passages": listed, "question": text}


def _block(title: str, text: str) -> str:
    return f"--- {title} ---\n{text.strip()}\n--- end ---"


def safe_name(name: str) -> str:
    """A file's name as it may be shown: no path, nothing invisible, at most MAX_NAME characters, its ending kept."""
    name = PurePath(name.replace("\\", "/")).name
    name = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c)[0] != "C")
    name = re.sub(r"\s+", " ", name).strip(" .") or "file"
    if len(name) <= MAX_NAME:
        return name
    suffix = PurePath(name).suffix[:20]
    return f"{name[: MAX_NAME - len(suffix) - 1]}…{suffix}"
