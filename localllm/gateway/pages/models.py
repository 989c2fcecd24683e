"""The pages of installed models. Everybody may look; what changes one needs a permission.

What a model is and can do say its row and `gateway.serving`; here it is asked and shown.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from asgiref.sync import async_to_sync
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import permission_required
from django.db.models import Count, Sum
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from localllm.gateway import model_files, serving
from localllm.gateway.models import FileVersion, LanguageModel, UsageLog
from localllm.gateway.pages.account import Piece, account_of, bar, header_of
from localllm.gateway.pages.model_form import ModelForm
from localllm.gateway.pages.request import Request, page_or_part
from localllm.gateway.presets import preset, presets
from localllm.gateway.serving import Memory
from localllm.inference.errors import InferenceError, ModelRefused
from localllm.inference.providers.llamacpp import Serving

USAGE_DAYS = 7
NUM_USERS = 10  # shown by name
NUM_COLOURS = 5  # of the pieces of the memory bar

may_load = permission_required("gateway.load_languagemodel", raise_exception=True)
may_change = permission_required("gateway.change_languagemodel", raise_exception=True)
may_delete = permission_required("gateway.delete_languagemodel", raise_exception=True)

Verb = Callable[[LanguageModel], Coroutine[Any, Any, object]]


@dataclass(frozen=True, slots=True)
class Card:
    """A model and how it is being served."""

    model: LanguageModel
    serving: Serving

    @property
    def is_changing(self) -> bool:
        return self.serving.state in ("waiting", "loading", "restarting", "ending")

    @property
    def is_starting(self) -> bool:
        return self.serving.state in ("waiting", "loading", "restarting")

    @property
    def is_measurable(self) -> bool:
        """Before and after the weights are read nothing tells how far it is."""
        return 0 < self.serving.fraction < 1

    @property
    def window(self) -> int:
        """Tokens of one conversation: what is set, or all that the model was trained on."""
        try:
            return self.model.engine_settings.window(header_of(self.model).context_length)
        except ModelRefused:
            return self.model.n_ctx

    @property
    def words(self) -> str:
        match self.serving.state:
            case "ready":
                return "Loaded"
            case "loading":
                return f"Loading, {self.serving.fraction:.0%}" if self.is_measurable else "Loading"
            case "waiting":
                return "Waiting for room in memory"
            case "restarting":
                return "Starting again"
            case "ending":
                return "Finishing its replies"
            case "refused":
                return "Will not load"
            case _:
                return "Not loaded"

    @property
    def prediction_error(self) -> str:
        """Such as `4.6 % more than measured`."""
        if not self.model.predicted_bytes or not self.model.measured_bytes:
            return ""
        excess = 100 * (self.model.predicted_bytes / self.model.measured_bytes - 1)
        return f"{abs(excess):.1f} % {'more' if excess > 0 else 'less'} than measured"


@dataclass(frozen=True, slots=True)
class Budget:
    """The memory that all models may take together, and which one holds how much of it."""

    memory: Memory
    holders: list[tuple[Card, str]]  # with the name of its colour
    pieces: list[Piece]

    @property
    def leaving_bytes(self) -> int:
        """Of workers that no card shows: of deleted models, of other files and settings, until their last reply."""
        return max(0, self.memory.held_bytes - sum(card.serving.needed_bytes for card, _ in self.holders))


# The list and the page of a model


@require_GET
def index(request: Request) -> HttpResponse:
    cards = [_card(model) for model in LanguageModel.objects.order_by("-is_default", "is_starter", "name")]
    context = {"cards": cards, "budget": _budget(cards), "is_changing": any(card.is_changing for card in cards)}
    return render(request, "models/index.html", context)


@require_GET
def show(request: Request, name: str) -> HttpResponse:
    model = _model(name)
    return render(request, "models/show.html", {**_facts(model), **_versions(model), **_usage(request, model)})


# In memory


@require_POST
@may_load
def load(request: Request, name: str) -> HttpResponse:
    return _do(request, name, serving.load, "{} is loading, or loaded already.")


@require_POST
@may_load
def unload(request: Request, name: str) -> HttpResponse:
    return _do(request, name, serving.unload, "{} leaves the memory, with its last reply if it is answering.")


@require_POST
@may_load
def cancel_load(request: Request, name: str) -> HttpResponse:
    return _do(request, name, serving.cancel_load, "Loading {} was cancelled.")


@require_POST
@may_load
def make_default(request: Request, name: str) -> HttpResponse:
    return _do(request, name, serving.make_default, "{} is the default model now. Running replies end on the old one.")


@require_POST
@may_load
def measure(request: Request, name: str) -> HttpResponse:
    return _do(request, name, serving.measure, "{} was measured.")


# The file


@require_POST
@may_change
def check(request: Request, name: str) -> HttpResponse:
    model = _model(name)
    try:
        model.check_file()
    except ModelRefused as exc:
        messages.error(request, str(exc))
    else:
        messages.success(request, f"The file of {model} is the one that was registered, to the last byte.")
    return _back(request, model)


@require_POST
@may_change
def replace(request: Request, name: str) -> HttpResponse:
    other = _model(request.POST.get("other", ""))
    return _do(
        request,
        name,
        lambda model: model_files.replace(model, other),
        f"{{}} answers with the file of {other} from now on. Running replies end on the old one.",
    )


@require_POST
@may_change
def roll_back(request: Request, name: str) -> HttpResponse:
    file = _version(request, name)
    return _do(
        request,
        name,
        lambda model: model_files.roll_back(model, file),
        f"{{}} answers with {file} from now on. Running replies end on the other file.",
    )


@require_POST
@may_change
def remove_version(request: Request, name: str) -> HttpResponse:
    file = _version(request, name)
    return _do(request, name, lambda _: model_files.remove_version(file), f"{file} is no version of {{}} any more.")


# Settings


@require_http_methods(["GET", "POST"])
@may_change
def edit(request: Request, name: str) -> HttpResponse:
    """The form; with `preset` filled in as that has it, and not saved."""
    model = _model(name)
    if chosen := preset(request.POST.get("preset", "")):
        form = ModelForm({**request.POST.dict(), **chosen.values}, instance=_model(name))
        return _edit_page(request, model, form, said=f"Filled in: {chosen.title}. Nothing is saved yet.")
    form = ModelForm(request.POST or None, instance=_model(name))
    if not form.is_valid():
        return _edit_page(request, model, form)
    said = "{} was saved."
    if form.has_changed_worker and serving.state(model).is_loaded:
        said += " New requests go to a new worker; running replies end on the old one."
    return _do(request, name, lambda _: serving.change(form.save(commit=False)), said)


@require_POST
@may_change
def fit(request: Request, name: str) -> HttpResponse:
    """The account of memory for the form as it is filled in."""
    model = _model(name)
    return render(request, "models/_settings_fit.html", _fit(model, ModelForm(request.POST, instance=_model(name))))


@require_http_methods(["GET", "POST"])
@may_delete
def delete(request: Request, name: str) -> HttpResponse:
    model = _model(name)
    if request.method == "GET":
        return page_or_part(request, "models/delete.html", {"model": model})
    try:
        async_to_sync(model_files.remove)(model)
    except InferenceError as exc:
        messages.error(request, str(exc))
        return redirect("models:show", model.name)
    messages.success(request, f"{model} was deleted. Its chats go on with the default model.")
    return redirect("models:index")


# What is shown


def _card(model: LanguageModel) -> Card:
    return Card(model, serving.state(model))


def _budget(cards: list[Card]) -> Budget:
    memory = serving.memory()
    holders = [card for card in cards if card.serving.needed_bytes and card.serving.state != "refused"]
    named = [(card, f"share-{number % NUM_COLOURS}") for number, card in enumerate(holders)]
    pieces = bar(((name, card.serving.needed_bytes) for card, name in named), memory.budget_bytes)
    return Budget(memory, named, pieces)


def _facts(model: LanguageModel) -> dict[str, Any]:
    context: dict[str, Any] = {
        "model": model,
        "card": _card(model),
        "hub": "" if settings.OFFLINE else settings.HF_ENDPOINT,
    }
    try:
        header = header_of(model)
    except ModelRefused as exc:
        return context | {"problem": str(exc)}
    return context | {"header": header, "window": model.engine_settings.window(header.context_length)}


def _versions(model: LanguageModel) -> dict[str, Any]:
    others = LanguageModel.objects.filter(is_starter=False, is_embedding=model.is_embedding).exclude(pk=model.pk)
    return {"versions": model.files.all(), "others": [] if model.is_starter else others}


def _usage(request: Request, model: LanguageModel) -> dict[str, Any]:
    """Of the last days; by user only for those who may read the usage log."""
    lately = UsageLog.objects.filter(model=model, created_at__gte=timezone.now() - timedelta(days=USAGE_DAYS))
    usage = lately.aggregate(num=Count("pk"), read=Sum("prompt_tokens"), written=Sum("completion_tokens"))
    context: dict[str, Any] = {"usage": usage, "usage_days": USAGE_DAYS}
    if request.user.has_perm("gateway.view_usagelog"):
        by_user = lately.values("user__username").annotate(num=Count("pk"), written=Sum("completion_tokens"))
        context["usage_by_user"] = by_user.order_by("-num")[:NUM_USERS]
        context["chats_by_user"] = model.num_conversations_by_user()[:NUM_USERS]
    return context


def _edit_page(request: Request, model: LanguageModel, form: ModelForm, said: str = "") -> HttpResponse:
    context = {"model": model, "form": form, "presets": presets(), "said": said, **_fit(model, form)}
    status = 400 if form.is_bound and form.errors and not said else 200
    return render(request, "models/settings.html", context, status=status)


def _fit(model: LanguageModel, form: ModelForm) -> dict[str, Any]:
    """The `account`, or in `faults` why there is none."""
    if form.is_bound and not form.is_valid():
        return {"faults": form.faults}
    try:
        return {"account": account_of(model, form.engine_settings if form.is_bound else model.engine_settings)}
    except ModelRefused as exc:
        return {"faults": [str(exc)]}


# What is done


def _do(request: Request, name: str, verb: Verb, said: str) -> HttpResponse:
    """Do it to the model of that name, and say so on the page it was asked from."""
    model = _model(name)
    try:
        async_to_sync(_run)(verb, model)
        model.refresh_from_db()
    except LanguageModel.DoesNotExist:
        messages.error(request, f"{model} was deleted meanwhile.")
    except InferenceError as exc:
        messages.error(request, str(exc))
    else:
        messages.success(request, said.format(model))
    return _back(request, model)


async def _run(verb: Verb, model: LanguageModel) -> None:
    await verb(model)


def _back(request: Request, model: LanguageModel) -> HttpResponse:
    is_there = LanguageModel.objects.filter(pk=model.pk).exists()
    to_list = request.POST.get("from") == "index" or not is_there
    return redirect("models:index") if to_list else redirect("models:show", model.name)


def _model(name: str) -> LanguageModel:
    return get_object_or_404(LanguageModel, name=name)


def _version(request: Request, name: str) -> FileVersion:
    number = request.POST.get("version", "")
    is_number = number.isascii() and number.isdecimal() and len(number) < 18
    return get_object_or_404(
        FileVersion.objects.select_related("model"), model__name=name, pk=number if is_number else 0
    )
