"""The list of schemas that other pages choose from, as a fragment. What is chosen then is theirs to keep."""

from __future__ import annotations

from django.contrib.auth.models import AnonymousUser, User
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from schemas_app.models import Schema

LIMIT = 50  # shown at once; a search finds the others


@require_GET
def picker(request: HttpRequest) -> HttpResponse:
    """The schemas that `?q=` finds, with the one of `?schema=` marked."""
    query = request.GET.get("q", "").strip()
    found = list(_found(request.user, query)[: LIMIT + 1])
    context = {
        "schemas": found[:LIMIT],
        "has_more": len(found) > LIMIT,
        "query": query,
        "chosen": request.GET.get("schema", ""),
    }
    return render(request, "schemas/_picker.html", context)


def _found(user: User | AnonymousUser, query: str) -> QuerySet[Schema]:
    return Schema.objects.visible_to(user).matching(query).filter(versions__isnull=False).distinct()
