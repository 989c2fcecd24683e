"""The pages of trials: a version of a template asked what was asked before, old and new answers side by side."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from localllm.gateway import jobs
from localllm.gateway.models import Job, Trial
from localllm.gateway.models.prompt_template import PromptTemplateError
from localllm.gateway.pages.prompts import rows
from localllm.gateway.pages.prompts.forms import TrialForm
from localllm.gateway.pages.request import Request, page_or_part
from localllm.inference.side_by_side import side_by_side

PER_PAGE = 10


@require_http_methods(["GET", "POST"])
def new(request: Request, template_id: UUID) -> HttpResponse:
    template = rows.find_to_change(request, template_id)
    form = TrialForm(request.POST if request.method == "POST" else None, template=template)
    if form.is_valid():
        try:
            trial = Trial.objects.begin(request.user, form.cleaned_data["version"], form.cleaned_data["number"])
        except PromptTemplateError as exc:
            form.add_error(None, str(exc))
        else:
            jobs.runner.wake()
            return redirect("prompts:trial", trial.pk)
    return render(
        request, "prompts/trial_new.html", {"template": template, "form": form}, status=400 if form.is_bound else 200
    )


@require_GET
def show(request: Request, trial_id: UUID) -> HttpResponse:
    """The whole page, or for htmx what changes while it runs."""
    return page_or_part(request, "prompts/trial.html", _context(request, _own(request, trial_id)))


@require_POST
def cancel(request: Request, trial_id: UUID) -> HttpResponse:
    return _change(request, trial_id, Job.cancel)


@require_POST
def resume(request: Request, trial_id: UUID) -> HttpResponse:
    return _change(request, trial_id, Job.resume)


def _change(request: Request, id: UUID, verb: Any) -> HttpResponse:
    verb(_own(request, id).job)
    jobs.runner.wake()
    return redirect("prompts:trial", id)


def _own(request: Request, id: UUID) -> Trial:
    trials = Trial.objects.owned_by(request.user).select_related("job", "version__template__current")
    return get_object_or_404(trials, pk=id)


def _context(request: Request, trial: Trial) -> dict[str, Any]:
    page = Paginator(trial.answers.select_related("usage"), PER_PAGE).get_page(request.GET.get("page"))
    before, after = trial.tokens()
    return {
        "trial": trial,
        "job": trial.job,
        "template": trial.version.template,
        "page": page,
        "answers": [(answer, list(side_by_side(answer.before, answer.after))) for answer in page],
        "tokens_before": before,
        "tokens_after": after,
        "may_change": rows.may_change(request),
    }
