"""Any repository of the hub: its files, and what one of them would take of this machine's memory.

For those who may add models: the hub answers with what this server's token may see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET
from msgspec.structs import replace

from localllm.gateway import catalogue, database, fitting, repositories
from localllm.gateway.models import LanguageModel
from localllm.gateway.pages.downloads import may_add_models
from localllm.gateway.pages.forms import LoadingForm
from localllm.inference.engine.gguf import Header
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import InferenceError
from localllm.inference.hub.files import HubFile, Repository
from localllm.inference.memory import WINDOW_STEP, Fit

LONGEST = 1 << 17  # window of the slider, for a model that does not say what it was trained on


@dataclass(frozen=True, slots=True)
class Piece:
    """Of the bar: where it starts and how long it is, in hundredths."""

    name: str
    start: float
    length: float


@dataclass(frozen=True, slots=True)
class Account:
    """What a file takes of the memory of this machine, loaded with these settings."""

    file: HubFile
    header: Header
    settings: EngineSettings
    fit: Fit
    loaded_bytes: int  # by other models

    @property
    def longest(self) -> int:
        return self.header.context_length or LONGEST

    @property
    def shortest(self) -> int:
        return min(WINDOW_STEP, self.longest)

    @property
    def free_bytes(self) -> int:
        """Below zero: so much is missing."""
        return self.fit.room_bytes - self.fit.need.used_bytes

    @property
    def limit(self) -> float:
        """Where on the bar models may take no more."""
        return self._share(self.loaded_bytes + self.fit.room_bytes)

    def pieces(self) -> Iterator[Piece]:
        need, end = self.fit.need, 0
        for name, num_bytes in (
            ("loaded", self.loaded_bytes),
            ("weights", need.weights_bytes),
            ("kv", need.kv_bytes),
            ("compute", need.compute_bytes),
            ("process", need.process_bytes),
        ):
            yield Piece(name, self._share(end), self._share(num_bytes))
            end += num_bytes

    def _share(self, num_bytes: int) -> float:
        whole = self.loaded_bytes + max(self.fit.room_bytes, self.fit.need.used_bytes)
        return round(100 * num_bytes / whole, 2)


@require_GET
@may_add_models
async def index(request: HttpRequest) -> HttpResponse:
    """The files of `?repo=`, and the account of `?file=`; for htmx only that."""
    name, file = request.GET.get("repo", "").strip(), request.GET.get("file", "")
    context: dict[str, object] = {"repo": name, "chosen": file, "form": LoadingForm()}
    try:
        repository = await repositories.repository(name) if name else None
    except InferenceError as exc:
        repository, context["problem"] = None, str(exc)
    if repository and file:
        context |= await _account(request, repository, file)
    return await database.read(_page, request, repository, context)


@require_GET
@may_add_models
async def account(request: HttpRequest) -> HttpResponse:
    """The account of `?file=` alone, as `?n_ctx=`, `?num_slots=` and `?kv_type=` have it."""
    try:
        repository = await repositories.repository(request.GET.get("repo", ""))
        context = await _account(request, repository, request.GET.get("file", ""))
    except InferenceError as exc:
        context = {"fault": str(exc)}
    return await database.read(render, request, "models/_hub_account.html", context)


async def _account(request: HttpRequest, repository: Repository, name: str) -> dict[str, object]:
    """`account`, or in `fault` why there is none."""
    form = LoadingForm(request.GET)
    if not form.is_valid():
        return {"fault": form.fault, "form": form}
    try:
        file = repository.file(name)
        header = await repositories.header(file)
    except InferenceError as exc:
        return {"fault": str(exc), "form": form}
    engine = replace(EngineSettings(), **form.given)
    fit = await database.read(fitting.fit, header, engine)
    return {"account": Account(file, header, engine, fit, await database.read(fitting.loaded_bytes)), "form": form}


def _page(request: HttpRequest, repository: Repository | None, context: dict[str, object]) -> HttpResponse:
    if request.headers.get("HX-Request"):
        return render(request, "models/_hub_file.html", context | {"repository": repository})
    files = repository.files if repository else ()
    models = LanguageModel.objects.by_hash(file.sha256 for file in files)
    context |= {
        "repository": repository,
        "files": [(file, models.get(file.sha256)) for file in files],
        "entry": repository and catalogue.of_repository(repository.name),
        "endpoint": settings.HF_ENDPOINT,
        "is_offline": settings.OFFLINE,
    }
    return render(request, "models/hub.html", context)
