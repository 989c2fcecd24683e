"""What every HTTP API here begins with: whose key it is, which model is meant, and addresses without a session."""

from __future__ import annotations

from typing import Any, cast

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, JsonResponse
from django.urls import re_path
from django.views.decorators.csrf import csrf_exempt
from ninja import NinjaAPI
from ninja.security import HttpBearer

from localllm.gateway import database
from localllm.gateway.api.errors import ApiError
from localllm.gateway.models import ApiKey, LanguageModel
from localllm.inference.errors import ProviderError


class BearerKey(HttpBearer):
    async def authenticate(self, request: HttpRequest, token: str) -> ApiKey | None:
        key = await database.read(ApiKey.objects.authenticate, token.strip())
        if key is not None and not key.is_use_noted:
            await database.write(key.note_use)
        return key


async def find_model(name: str) -> LanguageModel:
    """Raises ApiError when there is none of that name."""

    def find() -> tuple[LanguageModel | None, list[str]]:
        enabled = LanguageModel.objects.filter(is_enabled=True)
        try:
            return enabled.named(name), []
        except LanguageModel.DoesNotExist:
            return None, [model.name for model in enabled]

    model, names = await database.read(find)
    if model is None:
        known = ", ".join(names) or "none"
        raise ApiError(
            404,
            f"There is no model {name!r} here. “default” is the default model; by name there are: {known}.",
            param="model",
            code="model_not_found",
        )
    return model


async def find_answering(name: str) -> LanguageModel:
    """The same, for one that writes answers."""
    model = await find_model(name)
    try:
        model.check_answers()
    except ProviderError as exc:
        raise ApiError(400, str(exc), param="model", code="no_chat_model") from exc
    return model


def addresses(api: NinjaAPI, routes: str) -> list[Any]:
    """The addresses of `api`, and an answer for all others that names its `routes`. A key is the login here."""

    @csrf_exempt
    async def unknown_endpoint(request: HttpRequest) -> JsonResponse:
        message = f"{request.method} {request.path} does not exist. This server has {routes}."
        return ApiError(404, message, code="unknown_url").response()

    # Ninja's own page at the root would lead to documentation that is switched off.
    known = [pattern for pattern in cast(list[Any], api.urls[0]) if pattern.name != "api-root"]
    patterns = [*known, re_path("", unknown_endpoint, name="unknown")]
    for pattern in patterns:
        login_not_required(pattern.callback)
    return patterns
