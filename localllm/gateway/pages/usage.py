"""The page of one logged generation: who, what model, how, what it took, its text, and its replays.

It is its asker's, and that of who may view the usage log; to others it does not exist.
"""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from localllm.gateway import database, jobs, replays
from localllm.gateway.models import Replay, UsageLog
from localllm.inference.errors import InferenceError

HIDDEN_PARAMETERS = ("seed", "clips_max_tokens", "prefix", "reasoning", "response_format")  # said elsewhere, or nowhere


class Request(HttpRequest):
    """As the middleware leaves it."""

    user: User


@require_GET
def show(request: Request, generation_id: UUID) -> HttpResponse:
    generation = _visible(request.user, generation_id)
    parameters = {
        name.replace("_", " "): value
        for name, value in generation.parameters.items()
        if name not in HIDDEN_PARAMETERS and value not in (None, "", [])
    }
    context = {"generation": generation, "parameters": parameters, **_replays(generation)}
    return render(request, "usage/show.html", context)


@require_GET
def of_message(request: Request, message_id: UUID) -> HttpResponse:
    """What was generated for one chat message: mostly one, but an answer may go on or be attempted again."""
    rows = list(UsageLog.objects.visible_to(request.user).filter(message_id=message_id).order_by("created_at"))
    if len(rows) == 1:
        return redirect(rows[0])
    return render(request, "usage/of_message.html", {"generations": rows}, status=200 if rows else 404)


@require_GET
async def text(request: Request, generation_id: UUID) -> HttpResponse:
    """Prompt and output as the model saw them. They are stored as token ids; its vocabulary spells them."""
    user = cast(User, await request.auser())
    generation = await database.read(_visible, user, generation_id)
    context: dict[str, Any] = {"generation": generation}
    try:
        context["prompt"], context["output"] = await replays.texts(generation)
    except InferenceError as exc:
        context["problem"] = str(exc)
    return await database.read(render, request, "usage/_text.html", context)


@require_GET
def state(request: Request, generation_id: UUID) -> HttpResponse:
    """The replays, as they stand."""
    return render(request, "usage/_replays.html", _replays(_visible(request.user, generation_id)))


@require_POST
def replay(request: Request, generation_id: UUID) -> HttpResponse:
    generation = _visible(request.user, generation_id)
    Replay.objects.request(generation, request.user)
    jobs.runner.wake()
    return redirect(generation)


@require_POST
def cancel(request: Request, generation_id: UUID) -> HttpResponse:
    """Stop the replays that are under way."""
    generation = _visible(request.user, generation_id)
    for each in generation.replays.select_related("job"):
        each.job.cancel()
    jobs.runner.wake()
    return redirect(generation)


def _visible(user: User, id: UUID) -> UsageLog:
    rows = UsageLog.objects.visible_to(user).select_related(
        "user", "api_key", "model", "schema_version__schema", "template_version__template"
    )
    return get_object_or_404(rows, pk=id)


def _replays(generation: UsageLog) -> dict[str, Any]:
    rows = list(generation.replays.select_related("job", "user"))
    return {"generation": generation, "replays": rows, "is_live": any(row.job.is_live for row in rows)}
