"""The pages of prompt templates: list, page, editor with its preview, comparison. Everybody reads, few change."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from localllm.gateway import database
from localllm.gateway.models import LanguageModel, PromptTemplate, Trial
from localllm.gateway.models.prompt_template import CHOICES, USE_CASES, PromptTemplateError
from localllm.gateway.pages.prompts import rows
from localllm.gateway.pages.prompts.forms import PromptTemplateForm
from localllm.gateway.pages.request import Request, page_or_part, unix_lines
from localllm.gateway.providers import local
from localllm.inference.errors import InferenceError
from localllm.inference.prompt_template import Template, TemplateError
from localllm.inference.side_by_side import side_by_side
from localllm.inference.types import Message

LISTED = 500  # templates on one page


@require_GET
def index(request: Request) -> HttpResponse:
    """By use case, those for a family below the one for all models; what was deleted with `?deleted=1`."""
    is_deleted = "deleted" in request.GET
    templates = PromptTemplate.objects.filter(deleted_at__isnull=not is_deleted).select_related("current")
    groups: dict[str, list[PromptTemplate]] = defaultdict(list)
    for template in templates.order_by("name", "family")[:LISTED]:
        groups[template.use_case].append(template)
    context = {
        "groups": [(title, groups[name]) for name, title in CHOICES if groups[name]],
        "is_deleted": is_deleted,
        "may_change": rows.may_change(request),
    }
    return render(request, "prompts/index.html", context)


@require_GET
def show(request: Request, template_id: UUID) -> HttpResponse:
    """The current version, or the one of `?version=`."""
    template = rows.find(template_id)
    version = rows.find_version(template, request.GET.get("version"))
    context = {
        "template": template,
        "version": version,
        "variables": Template(version.text).variables,
        "versions": list(template.versions.select_related("created_by")),
        "trials": list(Trial.objects.owned_by(request.user).of(template)[:20]),
        "experiments": list(template.experiments.all()[:20]),
        "running": template.experiments.filter(ended_at=None).first(),
        "may_change": rows.may_change(request),
    }
    return render(request, "prompts/show.html", context)


# The editor


@require_http_methods(["GET", "POST"])
def new(request: Request) -> HttpResponse:
    """A template, or a variant of the one of `?variant-of=`."""
    rows.refuse_unless_allowed(request)
    initial = {}
    if variant_of := request.GET.get("variant-of", ""):
        base = PromptTemplate.objects.in_use().filter(name=variant_of, family="").first()
        if base is not None:
            initial = {"use_case": base.use_case, "name": base.name, "text": base.current_version.text}
    return _edit(request, PromptTemplateForm(_posted(request), initial=initial))


@require_http_methods(["GET", "POST"])
def edit(request: Request, template_id: UUID) -> HttpResponse:
    template = rows.find_to_change(request, template_id)
    return _edit(request, PromptTemplateForm(_posted(request), instance=template))


def _posted(request: Request) -> QueryDict | None:
    return request.POST if request.method == "POST" else None


def _edit(request: Request, form: PromptTemplateForm) -> HttpResponse:
    if form.is_valid():
        version = form.add_version(request.user)
        unchanged = "Saved. The prompt has not changed, so there is no new version."
        messages.success(request, f"Version {version.number} is saved." if version else unchanged)
        return redirect("prompts:show", form.instance.pk)
    context = {
        "form": form,
        "template": None if form.is_new else form.instance,
        "models": LanguageModel.objects.answering(),
    }
    return render(request, "prompts/edit.html", context, status=400 if form.is_bound else 200)


@dataclass(frozen=True, slots=True)
class Seen:
    """A prompt as one model sees it, its own chat template around it."""

    model: LanguageModel
    text: str = ""
    num_tokens: int = 0
    problem: str = ""


@require_POST
async def preview(request: Request) -> HttpResponse:
    """What becomes of a text that is being written, with the values that its variables are tried with."""
    said = request.POST
    use_case, name = said.get("use_case", ""), said.get("model", "")
    samples = USE_CASES[use_case].samples if use_case in USE_CASES else {}
    try:
        template = Template(unix_lines(said.get("text", "")))
        if use_case in USE_CASES:
            template.check(samples)
        values = {name: said.get(f"value-{name}", samples.get(name, f"[{name}]")) for name in template.variables}
        text = template.render(values)
    except TemplateError as exc:
        context: dict[str, object] = {"problem": str(exc)}
    else:
        context = {
            "values": values,
            "unused": [name for name in samples if name not in values],
            "text": text,
            "seen": await _seen(text, use_case, name),
        }
    return await database.read(render, request, "prompts/_preview.html", context)


async def _seen(text: str, use_case: str, name: str) -> Seen | None:
    """By the model of that name; nothing is loaded for it."""
    model = await database.read(LanguageModel.objects.filter(is_enabled=True, name=name).first)
    if model is None:
        return None
    host = local.loaded(model.local())
    if host is None or host.state != "ready":
        return Seen(model, problem=f"{model} is not loaded. Ask it something, then this shows what it is asked.")
    asked = (Message("system", text), Message("user", "Hello.")) if use_case == "chat" else (Message("user", text),)
    try:
        return Seen(model, *await host.preview(asked))
    except InferenceError as exc:
        return Seen(model, problem=str(exc))


# What becomes of a template


@require_GET
def compare(request: Request, template_id: UUID) -> HttpResponse:
    """Version `?from=` beside version `?to=`."""
    template = rows.find(template_id)
    before, after = (rows.find_version(template, request.GET.get(name)) for name in ("from", "to"))
    context = {
        "template": template,
        "before": before,
        "after": after,
        "numbers": list(template.versions.values_list("number", flat=True)),
        "lines": list(side_by_side(before.text, after.text)) if before.text != after.text else [],
        "may_change": rows.may_change(request),
    }
    return render(request, "prompts/compare.html", context)


@require_POST
def make_current(request: Request, template_id: UUID) -> HttpResponse:
    """Ask with `version` from now on: a new one, or an old one again."""
    template = rows.find_to_change(request, template_id)
    version = rows.find_version(template, request.POST.get("version"))
    if template.experiments.filter(ended_at=None).exists():
        messages.error(request, "An experiment decides at the moment who gets which version. End it first.")
    else:
        template.make_current(version)
        messages.success(request, f"Version {version.number} is asked with from now on.")
    return redirect("prompts:show", template_id)


@require_http_methods(["GET", "POST"])
def delete(request: Request, template_id: UUID) -> HttpResponse:
    template = rows.find_to_change(request, template_id)
    if request.method == "GET":
        return page_or_part(request, "prompts/delete.html", {"template": template})
    try:
        template.discard()
    except PromptTemplateError as exc:
        messages.error(request, str(exc))
        return redirect("prompts:show", template_id)
    messages.success(request, f"“{template}” is deleted. It can be restored.")
    return redirect("prompts:index")


@require_POST
def restore(request: Request, template_id: UUID) -> HttpResponse:
    template = rows.find_to_change(request, template_id)
    template.restore()
    messages.success(request, f"“{template}” is back.")
    return redirect("prompts:show", template_id)
