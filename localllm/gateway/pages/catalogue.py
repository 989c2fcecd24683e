"""The catalogue and each of its models, beside this machine. Everybody may look.

The hub is asked only for those who may add models: it answers with what this server's token may see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.models import User
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_POST

from localllm.gateway import catalogue, database, downloads, fitting, repositories
from localllm.gateway.catalogue import Choice, Entry
from localllm.gateway.models import Download, LanguageModel
from localllm.gateway.pages.downloads import MAY_ADD, may_add_models
from localllm.gateway.pages.request import Request
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import HubError
from localllm.inference.hub.files import HubFile, Repository
from localllm.inference.memory import Fit
from localllm.inference.shapes import Quantisation

FILTERS = (("", "All"), ("fits", "Fits this machine"), ("commercial", "Commercial use allowed"))


@dataclass(frozen=True, slots=True)
class Card:
    """A model of the catalogue as it is shown. The size is the hub's where it has answered lately."""

    choice: Choice
    hub_size_bytes: int | None
    model: LanguageModel | None  # that came from its repository
    download: Download | None  # that is not over

    @property
    def size_bytes(self) -> int:
        return self.hub_size_bytes or self.choice.size_bytes

    @property
    def is_estimate(self) -> bool:
        return self.hub_size_bytes is None


@dataclass(frozen=True, slots=True)
class Row:
    """One quantisation of a model; `file` where the hub has said which it is."""

    quantisation: Quantisation
    size_bytes: int
    fit: Fit
    file: HubFile | None
    model: LanguageModel | None


@require_GET
def index(request: Request) -> HttpResponse:
    chosen = request.GET.get("show", "")
    cards = [card for card in _cards() if _is_shown(card.choice, chosen)]
    context = {"cards": cards, "filters": FILTERS, "chosen": chosen}
    return render(request, "models/catalogue.html", context | _rights(request))


@require_GET
async def entry(request: Request, slug: str) -> HttpResponse:
    """All quantisations of one model, with the hub's sizes where it may be asked and answers."""
    entry, repository, problem = _entry(slug), None, ""
    if not settings.OFFLINE and await (await request.auser()).ahas_perm(MAY_ADD):
        try:
            repository = await repositories.repository(entry.repository)
        except HubError as exc:
            problem = str(exc)
    return await database.read(_entry_page, request, entry, repository, problem)


@require_POST
@may_add_models
async def get(request: Request, slug: str) -> HttpResponse:
    """Download what suits this machine best."""
    entry, problem = _entry(slug), ""
    try:
        await downloads.request_best(entry, user=cast(User, await request.auser()))
    except HubError as exc:
        problem = str(exc)
    if request.htmx:
        return await database.read(_first_card, request, problem)
    if problem:
        messages.error(request, problem)
        return redirect("models:catalogue")  # the entry's page would ask the hub again, and say the same
    return redirect("models:downloads")


@require_GET
def first(request: Request) -> HttpResponse:
    """For a machine that has only the starter: a card with what to get, then with how far it is."""
    return _first_card(request)


def _first_card(request: Request, problem: str = "") -> HttpResponse:
    context = {
        "choice": next((choice for choice in fitting.choices() if choice.is_recommended), None),
        "download": Download.objects.unfinished().first() or Download.objects.complete().first(),
        "problem": problem,
    }
    return render(request, "models/_catalogue_first.html", context | _rights(request))


def _entry_page(request: Request, entry: Entry, repository: Repository | None, problem: str) -> HttpResponse:
    context = {
        "choice": next(choice for choice in fitting.choices() if choice.entry is entry),
        "rows": list(_rows(entry, repository)),
        "repository": repository,
        "problem": problem,
    }
    return render(request, "models/catalogue_entry.html", context | _rights(request))


def _rows(entry: Entry, repository: Repository | None) -> Iterator[Row]:
    """All quantisations, or those that the repository has."""
    files = {file.quantisation: file for file in repository.files} if repository else {}
    models = LanguageModel.objects.by_hash(file.sha256 for file in files.values())
    for quantisation, estimate in entry.sizes.items():
        file = files.get(quantisation)
        if file or not repository:
            found = fitting.fit(entry.header(quantisation), EngineSettings())
            size = file.size_bytes if file else estimate
            yield Row(quantisation, size, found, file, models.get(file.sha256) if file else None)


def _cards() -> Iterator[Card]:
    models = {model.repository: model for model in LanguageModel.objects.all()}
    under_way = {download.repo: download for download in Download.objects.unfinished()}
    for choice in fitting.choices():
        name = choice.entry.repository
        repository = repositories.known(name)
        sizes = {file.quantisation: file.size_bytes for file in repository.files} if repository else {}
        yield Card(choice, sizes.get(choice.quantisation), models.get(name), under_way.get(name))


def _is_shown(choice: Choice, chosen: str) -> bool:
    match chosen:
        case "fits":
            return choice.fit.verdict in ("fits", "smaller context")
        case "commercial":
            return choice.entry.commercial_use == "yes"
    return True


def _entry(slug: str) -> Entry:
    entry = catalogue.named(slug)
    if entry is None:
        raise Http404(f"The catalogue has no model {slug!r}.")
    return entry


def _rights(request: Request) -> dict[str, bool]:
    return {"may_add": request.user.has_perm(MAY_ADD), "is_offline": settings.OFFLINE}
