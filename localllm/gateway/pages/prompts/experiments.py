"""The pages of experiments on a prompt template: begin, figures with a verdict, end."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from localllm.gateway.models import Experiment
from localllm.gateway.models.experiment import METRICS, ExperimentError, Outcome
from localllm.gateway.pages.prompts import rows
from localllm.gateway.pages.prompts.forms import ExperimentForm
from localllm.gateway.pages.request import Request

MAX_VERSIONS = 10  # that the form offers, the newest and the current one


@require_http_methods(["GET", "POST"])
def new(request: Request, template_id: UUID) -> HttpResponse:
    template = rows.find_to_change(request, template_id)
    versions = list(template.versions.all()[:MAX_VERSIONS])
    if template.current_version not in versions:
        versions.append(template.current_version)
    half_each = [template.current_version, *(each for each in versions if each != template.current_version)][:2]
    initial = {f"share-{version.number}": 50 for version in half_each}
    form = ExperimentForm(request.POST if request.method == "POST" else None, versions=versions, initial=initial)
    if form.is_valid():
        try:
            experiment = Experiment.objects.start(template, form.cleaned_data["metric"], form.shares, user=request.user)
            return redirect("prompts:experiment", experiment.pk)
        except ExperimentError as exc:
            form.add_error(None, str(exc))
    context = {"template": template, "form": form, "current_label": f"Version {template.current_version.number}"}
    return render(request, "prompts/experiment_new.html", context, status=400 if form.is_bound else 200)


@dataclass(frozen=True, slots=True)
class Row:
    """An outcome in words and figures."""

    outcome: Outcome
    mean: str
    difference: str  # from … to …, beside the control
    word: str


@require_GET
def show(request: Request, experiment_id: UUID) -> HttpResponse:
    experiment = get_object_or_404(Experiment.objects.select_related("template__current", "kept"), pk=experiment_id)
    outcomes = experiment.outcomes()
    context = {
        "experiment": experiment,
        "template": experiment.template,
        "rows": [_row(experiment, outcome) for outcome in outcomes],
        "verdict": experiment.verdict(outcomes),
        "is_decided": any(outcome.is_better is not None for outcome in outcomes),
        "is_geometric": not METRICS[experiment.metric].is_share,
        "may_change": rows.may_change(request),
    }
    return render(request, "prompts/experiment.html", context)


def _row(experiment: Experiment, outcome: Outcome) -> Row:
    metric, interval = METRICS[experiment.metric], outcome.difference
    words = {True: "better", False: "worse", None: "not known yet"}
    return Row(
        outcome,
        metric.shown(outcome.sample.mean) if outcome.sample.count else "–",
        f"{metric.shown_difference(interval.low)} to {metric.shown_difference(interval.high)}" if interval else "–",
        "the current one" if outcome.is_control else words[outcome.is_better],
    )


@require_POST
def end(request: Request, experiment_id: UUID) -> HttpResponse:
    """Keep the version of `kept` from now on."""
    rows.refuse_unless_allowed(request)
    experiment = get_object_or_404(Experiment.objects.select_related("template"), pk=experiment_id)
    kept = rows.find_version(experiment.template, request.POST.get("kept"))
    if not experiment.variants.filter(version=kept).exists():
        messages.error(request, f"Version {kept.number} takes no part in this experiment. Choose one that does.")
    else:
        experiment.end(kept)
        messages.success(request, f"The experiment has ended. Version {kept.number} is asked with from now on.")
    return redirect("prompts:experiment", experiment_id)
