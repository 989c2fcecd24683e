"""Any repository of the hub: its files, and what one of them would take of this machine's memory.

For those who may add models: the hub answers with what this server's token may see.
"""

from __future__ import annotations

from django.conf import settings
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET
from msgspec.structs import replace

from localllm.gateway import catalogue, database, fitting, repositories, serving
from localllm.gateway.models import LanguageModel
from localllm.gateway.pages.account import Account
from localllm.gateway.pages.downloads import may_add_models
from localllm.gateway.pages.forms import LoadingForm
from localllm.gateway.pages.request import Request
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import InferenceError
from localllm.inference.hub.files import Repository


@require_GET
@may_add_models
async def index(request: Request) -> HttpResponse:
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
async def account(request: Request) -> HttpResponse:
    """The account of `?file=` alone, as `?n_ctx=`, `?num_slots=` and `?kv_type=` have it."""
    try:
        repository = await repositories.repository(request.GET.get("repo", ""))
        context = await _account(request, repository, request.GET.get("file", ""))
    except InferenceError as exc:
        context = {"fault": str(exc)}
    return await database.read(render, request, "models/_hub_account.html", context)


async def _account(request: Request, repository: Repository, name: str) -> dict[str, object]:
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
    account = Account(header, engine, fit, serving.memory().held_bytes)
    return {"account": account, "file": file, "form": form}


def _page(request: Request, repository: Repository | None, context: dict[str, object]) -> HttpResponse:
    if request.htmx:
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
