"""Pages about what the model reads of a chat: the bar under the composer, the panel behind it, the summary.

Only fragments for htmx: without script there is no chat. Every row is looked up among the reader's own.
"""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

from django import forms
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_http_methods, require_POST
from django_htmx.http import trigger_client_event

from chat.attachments import MAX_ATTACHMENTS, Attachment, File, FileChoice
from chat.context import compression, ledger
from chat.context.ledger import Draft
from chat.models import Conversation, ConversationError, Message, Summary
from localllm.gateway import database
from localllm.gateway.providers import local
from localllm.gateway.summaries import LocalCounter
from localllm.inference import chunking
from localllm.inference.compression import TITLES, KeyFacts
from localllm.inference.errors import InferenceError

LISTED = 100  # messages of the panel, the newest first, until more are asked for
PLACEMENTS = ("automatic", "pinned", "expanded", "excluded")


class SummaryForm(forms.Form):
    """Facts by list, one on each line."""

    def __init__(self, facts: KeyFacts, data: Any = None) -> None:
        super().__init__(data, auto_id="summary-%s")
        for name, title in TITLES.items():
            lines = [fact.text for fact in getattr(facts, name)]
            area = forms.Textarea(attrs={"rows": max(2, min(6, len(lines) + 1))})
            self.fields[name] = forms.CharField(
                label=title, required=False, widget=area, initial="\n".join(lines), max_length=20_000
            )

    @property
    def lines(self) -> dict[str, list[str]]:
        return {name: self.cleaned_data[name].splitlines() for name in self.fields}


@require_POST
async def bar(request: HttpRequest, id: UUID) -> HttpResponse:
    """How full the window is with what is being written."""
    return await _account(request, await _own(request, id), "chat/context/_bar.html")


@require_http_methods(["GET", "POST"])
async def panel(request: HttpRequest, id: UUID) -> HttpResponse:
    """Every part and every message with its tokens, and what can be done with it."""
    return await _account(request, await _own(request, id), "chat/context/_panel.html")


@require_POST
async def sent(request: HttpRequest, id: UUID) -> HttpResponse:
    """What will be sent, as the model sees it."""
    conversation = await _own(request, id)
    context: dict[str, Any] = {"conversation": conversation}
    try:
        draft = await database.read(_draft, request, conversation)
        model, messages = await database.read(ledger.sent, conversation, draft)
        context["text"], context["num_tokens"] = await local.preview(model.local(), messages)
    except InferenceError as exc:
        context["problem"] = str(exc)
    return await database.read(render, request, "chat/context/_sent.html", context)


@require_POST
async def place(request: HttpRequest, id: UUID) -> HttpResponse:
    """Pin a message, show it in full, leave it out, or let it be summarised."""
    conversation, placement = await _own(request, id), request.POST.get("placement", "")
    if placement not in PLACEMENTS:
        return HttpResponse(f"Expected a placement of {', '.join(PLACEMENTS)}.", status=400, content_type="text/plain")

    def store() -> None:
        message = get_object_or_404(Message, pk=_id(request, "message"), conversation=conversation)
        Message.objects.filter(pk=message.pk).update(placement=placement)

    await database.write(store)
    response = await _account(request, conversation, "chat/context/_panel.html")
    return trigger_client_event(response, "messages-changed")


@require_http_methods(["GET", "POST"])
async def edit(request: HttpRequest, id: UUID, summary_id: UUID) -> HttpResponse:
    conversation = await _own(request, id)
    summary = await database.read(_summary, conversation, summary_id)
    form = SummaryForm(summary.facts, request.POST if request.method == "POST" else None)
    problem = ""
    if form.is_valid():
        try:
            await _rewrite(conversation, summary, summary.facts.edited(form.lines))
            return _changed()
        except (ConversationError, InferenceError) as exc:
            problem = str(exc)
    context = {"conversation": conversation, "summary": summary, "form": form, "problem": problem}
    return await database.read(render, request, "chat/context/_edit.html", context)


@require_POST
async def pin(request: HttpRequest, id: UUID, summary_id: UUID) -> HttpResponse:
    """Carry a fact on word for word, or not any more."""
    conversation = await _own(request, id)
    summary = await database.read(_summary, conversation, summary_id)
    facts = summary.facts.with_pin(request.POST.get("fact", ""), is_pinned="pinned" in request.POST)
    await database.write(summary.edit, facts, summary.tokens_after, conversation.owner)
    return _changed()


@require_POST
async def undo(request: HttpRequest, id: UUID, summary_id: UUID) -> HttpResponse:
    conversation = await _own(request, id)
    summary = await database.read(_summary, conversation, summary_id)
    await database.write(summary.undo)
    return _changed()


async def _rewrite(conversation: Conversation, summary: Summary, facts: KeyFacts) -> None:
    model = (await database.read(conversation.resolved_model)).local()
    budget = compression.budget_of((await local.info(model)).window)
    num_tokens = await chunking.count(facts.text, LocalCounter(model))
    if num_tokens > budget:
        raise ConversationError(
            f"The summary has {num_tokens} tokens, and here it may have {budget}. Shorten it, or pin messages instead."
        )
    await database.write(summary.edit, facts, num_tokens, conversation.owner)


async def _account(request: HttpRequest, conversation: Conversation, template: str) -> HttpResponse:
    context: dict[str, Any] = {"conversation": conversation}
    try:
        draft = await database.read(_draft, request, conversation)
        account = await ledger.take(conversation, draft=draft)
        turns = account.turns[::-1]
        shown = turns if "all" in request.POST else turns[:LISTED]
        context |= {"ledger": account, "turns": shown, "num_more": len(turns) - len(shown)}
    except InferenceError as exc:
        context["problem"] = str(exc)
    return await database.read(render, request, template, context)


def _draft(request: HttpRequest, conversation: Conversation) -> Draft:
    """What stands in the composer: the text, and the chips of files."""
    fields = zip(*(request.POST.getlist(name) for name in ("file", "mode", "cut_at")), strict=False)
    try:
        choices = [FileChoice.parse(*each) for each in fields][:MAX_ATTACHMENTS]
    except (ValueError, TypeError):
        choices = []
    files = File.objects.filter(owner=conversation.owner_id).in_bulk([choice.file_id for choice in choices])
    attachments = tuple(
        Attachment(file=files[choice.file_id], mode=choice.mode, cut_at=choice.cut_at)
        for choice in choices
        if choice.file_id in files
    )
    return Draft(request.POST.get("text", "").strip(), attachments)


async def _own(request: HttpRequest, id: UUID) -> Conversation:
    user = cast(User, await request.auser())
    owned = Conversation.objects.owned_by(user).select_related("model", "schema", "owner", "template")
    return await database.read(get_object_or_404, owned, pk=id)


def _summary(conversation: Conversation, id: UUID) -> Summary:
    return get_object_or_404(Summary, pk=id, conversation=conversation)


def _id(request: HttpRequest, name: str) -> UUID | None:
    try:
        return UUID(request.POST.get(name, ""))
    except ValueError:
        return None


def _changed() -> HttpResponse:
    """The page fetches its messages again, and closes the dialog."""
    return trigger_client_event(HttpResponse(status=204), "summary-changed")
