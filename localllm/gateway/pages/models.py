"""The pages of installed models. What one is and can do say its row and the engine; here it is asked and shown."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from localllm.gateway.models import LanguageModel


@require_GET
def index(request: HttpRequest) -> HttpResponse:
    return render(request, "models/index.html", {"models": LanguageModel.objects.all()})
