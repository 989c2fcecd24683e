"""The queue of downloads, for those who may add models. The work is done by gateway/downloads.py as jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import permission_required
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from localllm.gateway import database, downloads, jobs
from localllm.gateway.models import Download, Job, LanguageModel
from localllm.gateway.pages.forms import LoadingForm
from localllm.gateway.pages.request import Request, page_or_part
from localllm.inference.errors import HubError

MAY_ADD = "gateway.add_languagemodel"
NUM_COMPLETE = 10  # shown below the queue

may_add_models = permission_required(MAY_ADD, raise_exception=True)


@require_GET
@may_add_models
def index(request: Request) -> HttpResponse:
    """The queue; for htmx only its list, which asks for itself again while there is something to see."""
    queue = list(Download.objects.unfinished().order_by("job__created_at"))
    context = {
        "queue": queue,
        "complete": Download.objects.complete()[:NUM_COMPLETE],
        "is_live": any(download.job.is_live for download in queue),
        "only_starter": LanguageModel.objects.filter(is_default=True, is_starter=True).exists(),
    }
    return page_or_part(request, "models/downloads.html", context)


@require_POST
@may_add_models
async def start(request: Request) -> HttpResponse:
    """A file of a repository, to be loaded as the form says."""
    repo, name, commit = [request.POST.get(key, "") for key in ("repo", "file", "commit")]
    form, user = LoadingForm(request.POST), cast(User, await request.auser())
    problem = form.fault
    if not problem:
        try:
            await downloads.request(repo, name, revision=commit or "main", user=user, **form.given)
        except HubError as exc:
            problem = str(exc)
    if problem:
        messages.error(request, problem)
        return redirect(f"{reverse('models:hub')}?{urlencode({'repo': repo, 'file': name})}")
    return redirect("models:downloads")


@require_POST
@may_add_models
def pause(request: Request, job_id: UUID) -> HttpResponse:
    return _change(job_id, Job.pause)


@require_POST
@may_add_models
def resume(request: Request, job_id: UUID) -> HttpResponse:
    return _change(job_id, Job.resume)


@require_POST
@may_add_models
async def cancel(request: Request, job_id: UUID) -> HttpResponse:
    row = await database.read(get_object_or_404, Download.objects.select_related("job"), job_id=job_id)
    await downloads.cancel(row)
    return redirect("models:downloads")


def _change(job_id: UUID, verb: Callable[[Job], Any]) -> HttpResponse:
    verb(get_object_or_404(Download.objects.select_related("job"), job_id=job_id).job)
    jobs.runner.wake()
    return redirect("models:downloads")
