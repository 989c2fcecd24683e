"""Templates as other pages use them: the list to choose from, and the text to insert. Fragments, no pages."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET, require_http_methods

from localllm.gateway.models import LanguageModel, PromptTemplate
from localllm.gateway.models.prompt_template import MESSAGE
from localllm.gateway.pages.request import Request, unix_lines
from localllm.inference.prompt_template import Template, TemplateError

INSERTED = (MESSAGE, "summarization", "rag_query")  # use cases whose prompts a person may want to send
LIMIT = 30  # shown at once; more letters find the others


@require_GET
def picker(request: Request) -> HttpResponse:
    """The templates to insert that `?q=` finds for the model of `?model=`."""
    query = request.GET.get("q", "").strip()
    model = LanguageModel.objects.filter(name=request.GET.get("model", "")).first() or LanguageModel()
    found = PromptTemplate.objects.in_use().variants_for(model).filter(use_case__in=INSERTED).matching(query)
    by_name = {template.name: template for template in found.order_by("name", "family")}  # its family's own wins
    context = {"templates": list(by_name.values())[:LIMIT], "has_more": len(by_name) > LIMIT, "query": query}
    return render(request, "prompts/_picker.html", context)


@require_http_methods(["GET", "POST"])
def insert(request: Request, template_id: UUID) -> HttpResponse:
    """The form that asks for its variables; the text with them in it, or what is wrong."""
    template = get_object_or_404(PromptTemplate.objects.in_use().select_related("current"), pk=template_id)
    version = template.current_version
    if request.method == "GET":
        context = {"template": template, "variables": Template(version.text).variables}
        return render(request, "prompts/_insert.html", context)
    given = {name.removeprefix("value-"): unix_lines(str(value)) for name, value in request.POST.items()}
    try:
        text, status = version.render(given), 200
    except TemplateError as exc:
        text, status = str(exc), 400
    return HttpResponse(text, content_type="text/plain; charset=utf-8", status=status)
