"""The pages of the chat: HTML for everything but the stream. Every row is looked up among the reader's own.

htmx is answered with a fragment, a plain form with a redirect to the page.
"""

from __future__ import annotations

import json
import re
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, timedelta, tzinfo
from functools import partial
from typing import Any, cast
from uuid import UUID, uuid4

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.http import Http404, HttpResponse, HttpResponseBadRequest, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from django_htmx.http import HttpResponseClientRedirect, HttpResponseClientRefresh, trigger_client_event

from chat import citations, live, markdown
from chat.attachments import FileChoice, Passage
from chat.forms import NewChatForm, RenameForm, SettingsForm
from chat.models import MAX_FOLDER, Conversation, ConversationError, Message, Summary
from chat.search import Hit, search
from localllm.gateway import data_view, database, serving
from localllm.gateway.models import Feedback, LanguageModel
from localllm.gateway.models.feedback import MAX_NOTE
from localllm.gateway.pages.request import Request, page_or_part
from localllm.inference.json_schema.reading import NotJson, loads

WINDOW = 60  # messages shown at once
BEFORE_TARGET = 10  # messages shown above the one that is jumped to
SIDEBAR = 100  # conversations listed at once
SUGGESTIONS = (
    "What can you do?",
    "Who are you?",
    "What is LocalLLM?",
    "Extract name and city as JSON: Maya Lindgren lives in Uppsala.",
)


@dataclass(frozen=True, slots=True)
class Turn:
    """A message as it is shown: closed blocks as HTML, and the text of the one still open."""

    message: Message
    html: str
    tail: str
    is_covered: bool = False
    summary: Summary | None = None  # that stands for the messages up to this one
    feedback: Feedback | None = None

    @property
    def ttft_s(self) -> float:
        return (self.message.ttft_ms or 0) / 1000

    @property
    def has_begun(self) -> bool:
        return bool(self.message.text or self.message.reasoning)

    @property
    def reasoning_s(self) -> float:
        return (self.message.reasoning_ms or 0) / 1000

    @property
    def json(self) -> str:
        """An answer by a schema as it is, highlighted; one line per value where it is whole."""
        try:
            return markdown.code(json.dumps(loads(self.message.text), indent=2, ensure_ascii=False), "json")
        except NotJson:
            return markdown.code(self.message.text, "json")

    @property
    def guarantee(self) -> str:
        """What vouches for an answer by a schema, in words."""
        account = self.message.guarantee
        return data_view.vouched({**account, "finish_reason": self.message.finish_reason}) if account else ""

    @property
    def num_unsure(self) -> int:
        """Values that the form marks."""
        fields = self.message.guarantee.get("fields", {}).values()
        probabilities = [each["probability"] for each in fields if each["probability"] is not None]
        return sum(probability < data_view.CHECK_BELOW for probability in probabilities)


@dataclass(frozen=True, slots=True)
class Choice:
    """A model as the picker shows it."""

    model: LanguageModel
    state: str
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Chats under one heading of the sidebar."""

    name: str
    chats: list[Any]  # with `is_answering`
    is_folder: bool = False
    is_open: bool = False


# Pages


@require_GET
def new(request: Request) -> HttpResponse:
    return _new_page(request, request.GET)


@require_POST
async def create(request: Request) -> HttpResponse:
    user = cast(User, await request.auser())

    def ask() -> Message:
        form = NewChatForm(request.POST)
        if not form.is_valid():
            raise ConversationError(next(iter(form.errors.values()))[0])
        return _ask(user, attachments=form.attachments, **form.cleaned_data)

    try:
        reply = await live.begin(ask)
    except ConversationError as exc:
        problem = str(exc)
        return await database.read(lambda: _new_page(request, request.POST, problem))
    response = redirect("chat:show", reply.conversation_id)
    response.status_code = 303
    return response


def _ask(
    user: User, text: str, cid: str, model: LanguageModel | None, schema: UUID | None, attachments: list[FileChoice]
) -> Message:
    """The reply to the first message of a new conversation; the same form sent twice makes it once."""
    before = Message.objects.filter(conversation__owner=user, cid=cid, text=text.strip(), parent=None).first()
    if before is not None:
        return before.children.latest("created_at")
    with transaction.atomic():
        own = model if model is not None and not model.is_default else None
        conversation = Conversation.objects.create(owner=user, model=own)
        conversation.choose_schema(schema)
        return conversation.send(cid, text, attachments)[1]


def _new_page(request: Request, choices: QueryDict, problem: str = "") -> HttpResponse:
    models = list(LanguageModel.objects.answering())
    by_name = {model.name: model for model in models}
    chosen = by_name.get(choices.get("model", "")) or next((m for m in models if m.is_default), None)
    context = _shell(request) | {
        "choices": _choices(models, chosen),
        "chosen": chosen,
        "only_starter": all(m.is_starter for m in models),
        "suggestions": SUGGESTIONS,
        "schema": Conversation.schemas_for(request.user).filter(pk=read_id(choices.get("schema"))).first(),
        "text": choices.get("text", ""),
        "problem": problem,
        "cid": uuid4(),
    }
    return render(request, "chat/new.html", context, status=400 if problem else 200)


@require_GET
def show(request: Request, id: UUID) -> HttpResponse:
    conversation = own_conversation(request, id)
    target = read_id(request.GET.get("message"))
    path = conversation.path()
    if target and target not in path:
        conversation.select(get_object_or_404(conversation.messages, pk=target))
        path = conversation.path()
    models = list(LanguageModel.objects.answering())
    chosen = _model_of(conversation)
    context = _shell(request, conversation) | {
        "choices": _choices(models, chosen),
        "chosen": chosen,
        "schema": conversation.schema,
        "form": SettingsForm(None, instance=conversation, inherits=chosen),
        **_window(conversation, path, _around(path, target)),
    }
    return render(request, "chat/show.html", context)


# Messages


@require_GET
def messages(request: Request, id: UUID) -> HttpResponse:
    """The window before `?before=` or after `?after=`, else what is shown: `?from=` on, up to `?to=` or the end."""
    conversation = own_conversation(request, id)
    path = conversation.path()
    places = {str(id): place for place, id in enumerate(path)}

    def place(name: str) -> int | None:
        return places.get(request.GET.get(name, ""))

    if (before := place("before")) is not None:
        context = _window(conversation, path, slice(max(0, before - WINDOW), before)) | {"num_later": 0}
    elif (after := place("after")) is not None:
        context = _window(conversation, path, slice(after + 1, after + 1 + WINDOW)) | {"num_earlier": 0}
    else:
        first, last = place("from"), place("to")
        context = _window(conversation, path, slice(first, None if last is None else last + 1))
    return render(request, "chat/_messages.html", {"conversation": conversation, **context})


@require_GET
def message(request: Request, id: UUID, message_id: UUID) -> HttpResponse:
    conversation = own_conversation(request, id)
    message = get_object_or_404(conversation.messages, pk=message_id)
    (turn,) = _turns(conversation, conversation.path(message.pk), slice(-1, None))
    return render(request, "chat/_message.html", {"conversation": conversation, "turn": turn})


@require_GET
def data(request: Request, id: UUID, message_id: UUID) -> HttpResponse:
    """A complete answer by a schema, as a JSON file."""
    messages = own_conversation(request, id).messages.select_related("schema_version__schema").filter(status="complete")
    message = get_object_or_404(messages, pk=message_id)
    if not message.is_structured:
        raise Http404
    name = message.schema_version.schema.slug if message.schema_version else "answer"
    headers = {"Content-Disposition": f'attachment; filename="{name}.json"'}
    return HttpResponse(message.text, content_type="application/json", headers=headers)


@require_POST
def select(request: Request, id: UUID) -> HttpResponse:
    """Show another version of a message."""
    conversation = own_conversation(request, id)
    message = get_object_or_404(conversation.messages, pk=read_id(request.POST.get("message")))
    conversation.select(message)
    if not request.htmx:
        return redirect("chat:show", id)
    path = conversation.path()
    context = _window(conversation, path, _around(path, message.pk))
    return render(request, "chat/_messages.html", {"conversation": conversation, **context})


@require_POST
def feedback(request: Request, id: UUID, message_id: UUID) -> HttpResponse:
    """A thumb, given or taken back by `value`, or the `note` to the one that is given."""
    conversation = own_conversation(request, id)
    message = get_object_or_404(conversation.messages, pk=message_id, role="assistant")
    given = Feedback.objects.filter(user=request.user, message_id=message.pk)
    note, value = request.POST.get("note"), request.POST.get("value")
    if note is not None:
        given.update(note=note.replace("\x00", "").strip()[:MAX_NOTE])
    elif value in ("1", "-1"):
        Feedback.objects.toggle(request.user, id, message.pk, int(value))
    else:
        return HttpResponseBadRequest("Expected a value of 1 or -1, or a note.", content_type="text/plain")
    if not request.htmx:
        return redirect(f"{reverse('chat:show', args=[id])}#m-{message_id}")
    context = {"conversation": conversation, "message": message, "feedback": given.first(), "asks_why": note is None}
    return render(request, "chat/_feedback.html", context)


def _window(conversation: Conversation, path: list[UUID], part: slice) -> dict[str, Any]:
    """The messages of a part of the branch, and how many there are around; without a beginning, the last ones."""
    start, end, _ = part.indices(len(path))
    if part.start is None:
        start = max(0, end - WINDOW)
    turns = _with_summary(conversation, _turns(conversation, path, slice(start, end)))
    return {"turns": turns, "num_earlier": start, "num_later": len(path) - end}


def _with_summary(conversation: Conversation, turns: list[Turn]) -> list[Turn]:
    """Mark which messages a summary stands for, and after which of them it is shown."""
    if not conversation.summaries.exists():
        return turns
    summary = conversation.summary_on(conversation.path())
    covered = set(conversation.path(summary.up_to_id)) if summary else set()
    return [
        replace(
            turn,
            is_covered=turn.message.pk in covered,
            summary=summary if summary and turn.message.pk == summary.up_to_id else None,
        )
        for turn in turns
    ]


def _turns(conversation: Conversation, path: list[UUID], part: slice) -> list[Turn]:
    """Of a part of the messages of `path`; what an answer cites may stand before."""
    shown = path[part]
    feedback = Feedback.objects.filter(user=conversation.owner_id).on(shown)
    turns = [replace(_turn(each), feedback=feedback.get(each.pk)) for each in conversation.branch(shown)]
    cited = {number for turn in turns for number in citations.numbers(turn.html)}
    passages = conversation.passages(path, cited)
    return [_with_citations(turn, passages) for turn in turns] if passages else turns


def _with_citations(turn: Turn, passages: dict[int, Passage]) -> Turn:
    message = turn.message
    if message.role == "user" or message.is_structured:
        return turn
    address = reverse("chat:passage", args=[message.conversation_id, message.pk, 0])
    return replace(turn, html=citations.link(turn.html, passages, address.removesuffix("0")))


def _around(path: list[UUID], target: UUID | None) -> slice:
    """The part that holds `target`, with a little above it; the end of the branch where that holds it anyway."""
    if target not in path:
        return slice(None)
    start = max(0, min(len(path) - WINDOW, path.index(target) - BEFORE_TARGET))
    return slice(start, start + WINDOW)


def _turn(message: Message) -> Turn:
    if message.role == "user":
        return Turn(message, "", message.text)
    if message.is_structured:
        return Turn(message, message.html or data_view.render(message.text), "")
    if message.is_live:
        closed = markdown.num_closed(message.text)
        return Turn(message, markdown.render(message.text[:closed]), message.text[closed:])
    return Turn(message, message.html or markdown.render(message.text), "")


# One conversation


@require_GET
def menu(request: Request, id: UUID) -> HttpResponse:
    return render(request, "chat/_menu.html", {"conversation": own_conversation(request, id)})


@require_http_methods(["GET", "POST"])
def rename(request: Request, id: UUID) -> HttpResponse:
    conversation = own_conversation(request, id)
    form = RenameForm(request.POST or None, instance=conversation)
    if request.method == "GET" or not form.is_valid():
        return render(request, "chat/_rename.html", {"conversation": conversation, "form": form})
    Conversation.objects.filter(pk=id).update(title=form.cleaned_data["title"])
    return _changed(request, id)


@require_http_methods(["GET", "POST"])
async def delete(request: Request, id: UUID) -> HttpResponse:
    user = cast(User, await request.auser())
    conversation = await database.read(get_object_or_404, Conversation.objects.owned_by(user), pk=id)
    if request.method == "GET":
        return await database.read(render, request, "chat/_delete.html", {"conversation": conversation})
    for reply in await database.read(lambda: list(conversation.messages.filter(status__in=Message.LIVE))):
        live.stop(reply.pk)
    await database.write(conversation.delete)
    if not request.htmx:
        return redirect("chat:new")
    if _is_current(request, id):
        return HttpResponseClientRedirect(reverse("chat:new"))
    return _sidebar_changed()


@require_POST
def pin(request: Request, id: UUID) -> HttpResponse:
    conversation = own_conversation(request, id)
    Conversation.objects.filter(pk=id).update(is_pinned=not conversation.is_pinned)
    return _sidebar_changed() if request.htmx else redirect("chat:show", id)


@require_POST
def archive(request: Request, id: UUID) -> HttpResponse:
    conversation = own_conversation(request, id)
    Conversation.objects.filter(pk=id).update(is_archived=not conversation.is_archived)
    return _changed(request, id)


@require_http_methods(["GET", "POST"])
def move_to_folder(request: Request, id: UUID) -> HttpResponse:
    conversation = own_conversation(request, id)
    context = {"conversation": conversation, "name": conversation.folder}
    return _folder_form(request, context, conversation.move_to_folder) or redirect("chat:show", id)


@require_http_methods(["GET", "POST"])
def rename_folder(request: Request) -> HttpResponse:
    """Rename the folder that has the `name`."""
    own = Conversation.objects.owned_by(request.user)
    name = (request.POST if request.method == "POST" else request.GET).get("name", "")
    if name not in own.folders():
        raise Http404
    context = {"renamed": name, "name": name}
    return _folder_form(request, context, partial(own.rename_folder, name)) or redirect("chat:sidebar")


def _folder_form(request: Request, context: dict[str, Any], move: Callable[[str], None]) -> HttpResponse | None:
    """Ask for the name of a folder, and `move` there; None where that is done and a page is to follow."""
    if request.method == "POST":
        try:
            move(request.POST.get("folder", ""))
        except ConversationError as exc:
            context |= {"name": request.POST["folder"], "problem": str(exc)}
        else:
            return _sidebar_changed() if request.htmx else None
    context |= {"names": Conversation.objects.owned_by(request.user).folders(), "max_length": MAX_FOLDER}
    if request.htmx:
        return render(request, "chat/_folder.html", context)
    context = _shell(request, context.get("conversation")) | context
    return render(request, "chat/folder.html", context, status=400 if "problem" in context else 200)


@require_POST
def model(request: Request, id: UUID) -> HttpResponse:
    """Choose the model of the answers to come."""
    conversation = own_conversation(request, id)
    chosen = get_object_or_404(LanguageModel.objects.answering(), name=request.POST.get("model", ""))
    Conversation.objects.filter(pk=conversation.pk).update(model=None if chosen.is_default else chosen)
    return HttpResponseClientRefresh() if request.htmx else redirect("chat:show", id)


@require_http_methods(["GET", "POST"])
def settings(request: Request, id: UUID) -> HttpResponse:
    conversation = own_conversation(request, id)
    form = SettingsForm(request.POST or None, instance=conversation, inherits=_model_of(conversation))
    is_saved = request.method == "POST" and form.is_valid()
    if is_saved:
        form.instance.save(update_fields=list(form.fields))
        if not request.htmx:
            return redirect("chat:show", id)
    context = {"conversation": conversation, "form": form, "is_saved": is_saved}
    return render(request, "chat/_settings.html", context)


def own_conversation(request: Request, id: UUID) -> Conversation:
    return get_object_or_404(Conversation.objects.owned_by(request.user).select_related("model", "schema"), pk=id)


def _changed(request: Request, id: UUID) -> HttpResponse:
    """Its page shows what was changed: load it again, or else only the sidebar."""
    if not request.htmx:
        return redirect("chat:show", id)
    return HttpResponseClientRefresh() if _is_current(request, id) else _sidebar_changed()


def _sidebar_changed() -> HttpResponse:
    return trigger_client_event(HttpResponse(status=204), "chats-changed")


def _is_current(request: Request, id: UUID) -> bool:
    return _current_id(request) == id


def _current_id(request: Request) -> UUID | None:
    """The conversation of the page that asks for a fragment."""
    found = re.search(r"/chat/([0-9a-f-]{36})/", request.htmx.current_url or "")
    return read_id(found[1]) if found else None


# The frame around: sidebar and models


@require_GET
def sidebar(request: Request) -> HttpResponse:
    """The list of chats, the archive with `?archived=1`, or what `?q=` finds."""
    return page_or_part(request, "chat/chats.html", _shell(request))


def _shell(request: Request, conversation: Conversation | None = None) -> dict[str, Any]:
    return _chats(request, conversation) | {"conversation": conversation}


def _chats(request: Request, current: Conversation | None = None) -> dict[str, Any]:
    query = request.GET.get("q", "").strip()
    if query:
        found: dict[UUID, list[Hit]] = {}
        for hit in search(request.user, query):
            found.setdefault(hit.conversation_id, []).append(hit)
        return {"query": query, "found": found.values()}
    is_archive = "archived" in request.GET or (current is not None and current.is_archived and not request.htmx)
    pages = request.GET.get("pages", "")
    num_pages = int(pages) if pages.isascii() and pages.isdecimal() and len(pages) < 4 else 1
    limit = SIDEBAR * max(1, num_pages)
    answering = Message.objects.filter(conversation=OuterRef("pk"), status__in=Message.LIVE)
    chats: Any = (
        Conversation.objects.owned_by(request.user)
        .filter(is_archived=is_archive)
        .annotate(is_answering=Exists(answering))
        .order_by("-is_pinned", "-updated_at")
        .only("title", "updated_at", "is_pinned", "folder")
    )
    # Folders are filled by hand, so each is listed whole; the others come in pages.
    is_foldered = Q(is_pinned=False, is_archived=False) & ~Q(folder="")
    foldered, rows = list(chats.filter(is_foldered)), list(chats.exclude(is_foldered)[: limit + 1])
    current_id = current.pk if current else _current_id(request)
    return {
        "groups": _grouped(rows[:limit], foldered, _zone(request), current_id),
        "is_archive": is_archive,
        "is_answering": any(row.is_answering for row in [*rows, *foldered]),
        "next_page": num_pages + 1 if len(rows) > limit else None,
        "current": current_id,
    }


def _grouped(rows: list[Any], foldered: list[Any], zone: tzinfo, current_id: UUID | None) -> list[Group]:
    """The pinned ones, which come first in `rows`; the folders in alphabetical order; the other rows by day."""
    today = timezone.localdate(timezone=zone)
    pinned: list[Any] = []
    days: dict[str, list[Any]] = {}
    folders: dict[str, list[Any]] = {}
    for row in rows:
        day = timezone.localdate(row.updated_at, timezone=zone)
        (pinned if row.is_pinned else days.setdefault(_age(day, today), [])).append(row)
    for row in foldered:
        folders.setdefault(row.folder, []).append(row)
    return [
        *([Group("Pinned", pinned)] if pinned else []),
        *(
            Group(name, folders[name], True, current_id in {row.pk for row in folders[name]})
            for name in sorted(folders, key=str.casefold)
        ),
        *(Group(name, chats) for name, chats in days.items()),
    ]


def _age(day: date, today: date) -> str:
    if day >= today:
        return "Today"
    if day == today - timedelta(days=1):
        return "Yesterday"
    if day >= today - timedelta(days=7):
        return "Previous 7 days"
    return f"{day:%B}" if day.year == today.year else f"{day:%B %Y}"


def _zone(request: Request) -> tzinfo:
    """The reader's own, as the browser tells it in a cookie."""
    try:
        return zoneinfo.ZoneInfo(request.COOKIES.get("zone", "UTC"))
    except (KeyError, ValueError, OSError):  # unknown, malformed, a directory
        return zoneinfo.ZoneInfo("UTC")


def _choices(models: list[LanguageModel], chosen: LanguageModel | None) -> list[Choice]:
    return [Choice(model, serving.state(model).state, model == chosen) for model in models]


def _model_of(conversation: Conversation) -> LanguageModel | None:
    try:
        return conversation.resolved_model()
    except LanguageModel.DoesNotExist:
        return None


def read_id(text: str | None) -> UUID | None:
    try:
        return UUID(text or "")
    except ValueError:
        return None
