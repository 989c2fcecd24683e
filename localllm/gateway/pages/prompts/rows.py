"""Which rows the pages of prompts look up, and who may change them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.shortcuts import get_object_or_404

from localllm.gateway.models import PromptTemplate, PromptTemplateVersion
from localllm.gateway.pages.request import Request


def may_change(request: Request) -> bool:
    return request.user.has_perm("gateway.change_prompttemplate")


def find(id: UUID) -> PromptTemplate:
    """Everybody who is signed in may read all of them."""
    return get_object_or_404(PromptTemplate.objects.select_related("current"), pk=id)


def find_to_change(request: Request, id: UUID) -> PromptTemplate:
    refuse_unless_allowed(request)
    return find(id)


def refuse_unless_allowed(request: Request) -> None:
    if not may_change(request):
        raise PermissionDenied("Your account may not change prompt templates. Ask an admin of this server.")


def find_version(template: PromptTemplate, number: Any) -> PromptTemplateVersion:
    """The version of that number; the current one if there is none."""
    is_number = isinstance(number, str) and number.isascii() and number.isdecimal() and len(number) < 9
    return get_object_or_404(template.versions, number=int(number)) if is_number else template.current_version
