"""Files on their way into a message, and what the model was shown of them. Every row is the reader's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from django.contrib.auth.models import User
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET, require_POST

from chat import attaching
from chat.attachments import Attachment, File, Passage
from chat.models import Conversation
from chat.views import own_conversation, read_id
from localllm.gateway import database
from localllm.gateway.models import LanguageModel
from localllm.gateway.pages.request import Request, page_or_part
from localllm.inference.documents import reader
from localllm.inference.errors import DocumentRefused, ProviderError

CONTEXT_CHARS = 1_500  # shown around a passage
SHOWN_CHARS = 100_000  # of a file


@require_POST
async def upload(request: Request) -> HttpResponse:
    """Read a file and keep its text; answers with its chip once it is stored, or with a sentence."""
    user = cast(User, await request.auser())
    file = request.FILES.get("upload")
    if file is None:
        return _refused("No file came. Choose one and try again.")
    if (file.size or 0) > reader.MAX_BYTES:
        return _refused(reader.too_large(file.size or 0))
    name = file.name or ""
    try:
        extract = await reader.read(file.read(), name)
    except DocumentRefused as exc:
        return _refused(str(exc))
    row = await database.write(File.objects.add, user, name, file.size or 0, extract)
    return await _chip(request, user, row, request.POST)


@require_GET
async def chip(request: Request, file_id: UUID) -> HttpResponse:
    """Of a file that was not sent yet, after the page was loaded again."""
    user = cast(User, await request.auser())
    unsent = File.objects.owned_by(user).filter(attachments=None)
    row = await database.read(get_object_or_404, unsent, pk=file_id)
    return await _chip(request, user, row, request.GET)


@require_POST
def remove(request: Request, file_id: UUID) -> HttpResponse:
    get_object_or_404(File.objects.owned_by(request.user).filter(attachments=None), pk=file_id).delete()
    return HttpResponse(status=204)


@require_GET
def attachment(request: Request, id: UUID, attachment_id: UUID) -> HttpResponse:
    """What the model was shown of a file."""
    found = Attachment.objects.shown().filter(message__conversation=own_conversation(request, id))
    row = get_object_or_404(found, pk=attachment_id)
    text = {"summary": row.summary, "passages": ""}.get(row.mode, row.file.text[: row.cut_at])
    context = {"attachment": row, "text": text[:SHOWN_CHARS], "num_more": max(0, len(text) - SHOWN_CHARS)}
    return page_or_part(request, "chat/attachment.html", context)


@require_GET
def passage(request: Request, id: UUID, message_id: UUID, number: int) -> HttpResponse:
    """A passage that an answer cites, in its place in the file."""
    conversation = own_conversation(request, id)
    message = get_object_or_404(conversation.messages, pk=message_id)
    passage = conversation.passages(conversation.path(message.pk), {number}).get(number)
    if passage is None:
        raise Http404
    context = {"passage": passage, "conversation": conversation, **_surroundings(passage)}
    return page_or_part(request, "chat/passage.html", context)


def _surroundings(passage: Passage) -> dict[str, Any]:
    text, start, end = passage.file.text, passage.start, passage.end
    first, last = max(0, start - CONTEXT_CHARS), min(len(text), end + CONTEXT_CHARS)
    return {
        "before": text[first:start],
        "after": text[end:last],
        "is_cut_before": first > 0,
        "is_cut_after": last < len(text),
    }


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a file is to be sent: the chat, its model, and the files beside it."""

    conversation: Conversation
    model: LanguageModel
    beside: list[File]

    @classmethod
    def of(cls, user: User, fields: Any, file: File) -> _Place:
        chats = Conversation.objects.owned_by(user).select_related("model")
        id = read_id(fields.get("conversation"))
        conversation = chats.filter(pk=id).first() if id else None
        named = LanguageModel.objects.filter(name=fields.get("model", ""), is_enabled=True).first()
        modes = zip(fields.getlist("file"), fields.getlist("mode"), strict=False)
        in_full = [id for id in (read_id(text) for text, mode in modes if mode == "full") if id]
        beside = File.objects.owned_by(user).filter(pk__in=in_full).exclude(pk=file.pk)
        conversation = conversation or Conversation(owner=user)
        return cls(conversation, named or conversation.resolved_model(), list(beside))


async def _chip(request: Request, user: User, file: File, fields: Any) -> HttpResponse:
    try:
        place = await database.read(_Place.of, user, fields, file)
        fit = await attaching.fit(file, place.conversation, place.model, place.beside)
    except LanguageModel.DoesNotExist:
        return _refused("There is no model that could read it. Register one first.")
    except ProviderError as exc:
        return _refused(str(exc))
    return render(request, "chat/_file_chip.html", {"file": file, "fit": fit})


def _refused(reason: str) -> HttpResponse:
    return HttpResponse(reason, status=422, content_type="text/plain; charset=utf-8")
