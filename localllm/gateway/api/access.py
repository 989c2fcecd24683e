"""What every HTTP API here begins with: the name it is asked by, the address, whose key it is, which model is meant."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, cast

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponseNotAllowed, JsonResponse
from django.http.response import HttpResponseBase
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.security import SecurityMiddleware
from django.urls import re_path
from django.views.decorators.csrf import csrf_exempt
from ninja import NinjaAPI
from ninja.security import HttpBearer

from localllm.gateway import database
from localllm.gateway.api.errors import ApiError, unknown_host, wrong_method
from localllm.gateway.models import ApiKey, LanguageModel
from localllm.inference.errors import ProviderError

Handler = Callable[..., Awaitable[HttpResponseBase]]


def hosts_and_headers(get_response: Handler) -> Handler:
    """The middleware of the API: the names of LOCALLLM_ALLOWED_HOSTS only, and the security headers of pages.

    What of Django's middlewares only computes is called here, and so stays in the event loop.
    """
    security, frames = SecurityMiddleware(get_response), XFrameOptionsMiddleware(get_response)

    async def answer(request: HttpRequest) -> HttpResponseBase:
        try:
            request.get_host()
        except DisallowedHost:
            response: Any = unknown_host(request.META.get("HTTP_HOST", "")).response()
        else:
            response = await get_response(request)
        return frames.process_response(request, security.process_response(request, response))

    return answer


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
        pattern.callback = login_not_required(_in_one_shape(pattern.callback))
    return patterns


def _in_one_shape(view: Handler) -> Handler:
    """Ninja answers a wrong method by itself and in plain text."""

    @functools.wraps(view)
    async def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        response = await view(request, *args, **kwargs)
        if not isinstance(response, HttpResponseNotAllowed):
            return response
        shaped = wrong_method(request, response["Allow"]).response()
        shaped["Allow"] = response["Allow"]
        return shaped

    return answer
