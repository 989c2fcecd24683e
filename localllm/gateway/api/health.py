"""GET /health, for supervisors and scripts: 200 when the default model can answer, else 503 and the reason."""

from __future__ import annotations

from pathlib import Path

import msgspec
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from localllm.gateway import database, serving
from localllm.gateway.models import LanguageModel
from localllm.gateway.providers import local


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`state` is that of the default model: ready, idle (loads when asked), loading, restarting, waiting (for memory),
    ending (unloads after its last reply), refused, gone."""

    ready: bool
    state: str
    model: str = ""
    provider: str = local.name
    message: str = ""


@login_not_required
@never_cache
@require_safe
async def health(request: HttpRequest) -> JsonResponse:
    now = await _examine()
    response = JsonResponse(msgspec.to_builtins(now), status=200 if now.ready else 503)
    response._has_been_logged = True  # type: ignore[attr-defined]  # Django would log each 503 as an error
    return response


async def _examine() -> Health:
    try:
        model = await database.read(LanguageModel.objects.default)
    except LanguageModel.DoesNotExist:
        return Health(ready=False, state="none", message="There is no default model. Register one first.")
    now = serving.state(model)
    if not now.is_loaded and not Path(model.path).is_file():
        return Health(
            ready=False, state="gone", model=model.name, message=f"The file of this model is gone: {model.path}."
        )
    if now.state == "stopped":
        return Health(ready=True, state="idle", model=model.name)
    return Health(ready=now.state in ("ready", "ending"), state=now.state, model=model.name, message=now.error)
