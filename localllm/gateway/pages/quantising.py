"""Making a smaller file of a model: what it can become, and how far the jobs that make it are."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from asgiref.sync import async_to_sync
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from localllm.gateway import jobs, quantising
from localllm.gateway.models import Job, LanguageModel
from localllm.gateway.pages.downloads import may_add_models
from localllm.gateway.pages.request import Request
from localllm.inference.engine.gguf import read_header
from localllm.inference.engine.quantise import SOURCES, recipes_for
from localllm.inference.errors import InferenceError, ModelRefused

NUM_SHOWN = 10
NOTES = {
    "Q8_0": "next to no loss",
    "Q6_K": "hardly any loss",
    "Q5_K_M": "little loss",
    "Q4_K_M": "the usual choice",
    "Q3_K_M": "noticeably worse",
    "Q2_K": "much worse; only where nothing else fits",
}


@require_GET
@may_add_models
def show(request: Request, name: str) -> HttpResponse:
    """The choice and the jobs; for htmx the jobs alone, which ask for themselves again while one is under way."""
    model = get_object_or_404(LanguageModel, name=name)
    if request.htmx:
        return render(request, "models/_quantise_jobs.html", {"model": model, **_jobs(model)})
    return _page(request, model)


@require_POST
@may_add_models
def start(request: Request, name: str) -> HttpResponse:
    model = get_object_or_404(LanguageModel, name=name)
    try:
        async_to_sync(quantising.request)(model, request.POST.get("recipe", ""))
    except InferenceError as exc:
        return _page(request, model, problem=str(exc))
    return redirect("models:quantise", model.name)


@require_POST
@may_add_models
def cancel(request: Request, name: str, job_id: UUID) -> HttpResponse:
    get_object_or_404(Job, pk=job_id, kind=quantising.KIND).cancel()
    jobs.runner.wake()
    return redirect("models:quantise", name)


def _page(request: Request, model: LanguageModel, problem: str = "") -> HttpResponse:
    recipes: list[tuple[str, str]] = []
    try:
        possible = recipes_for(read_header(Path(model.path)))
        recipes = [(recipe, NOTES.get(recipe, "")) for recipe in reversed(possible)]
    except ModelRefused as exc:
        problem = problem or str(exc)
    context = {"model": model, "recipes": recipes, "sources": SOURCES, "problem": problem, **_jobs(model)}
    return render(request, "models/quantise.html", context, status=400 if problem else 200)


def _jobs(model: LanguageModel) -> dict[str, Any]:
    found = list(Job.objects.filter(kind=quantising.KIND, parameters__model=model.pk)[:NUM_SHOWN])
    made = LanguageModel.objects.in_bulk([job.parameters.get("made") for job in found])
    return {
        "jobs": [(job, made.get(job.parameters.get("made"))) for job in found],
        "is_live": any(job.is_live for job in found),
    }
