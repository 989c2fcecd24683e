"""The wall around every page that is not marked public, and the way in while there is no account at all."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model, middleware
from django.http import HttpRequest, QueryDict
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse
from django_htmx.http import HttpResponseClientRedirect

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]", "::1", ".localhost"})
CODE_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"  # nothing that looks like another
CODE_CHARS = 10


def account_exists() -> bool:
    return get_user_model()._default_manager.exists()


def is_exposed() -> bool:
    """Whether others than the people of this machine may reach this server."""
    return not settings.IS_LOOPBACK or not LOOPBACK_NAMES.issuperset(settings.ALLOWED_HOSTS)


@functools.cache
def first_run_code() -> str:
    """What the first-run page of an exposed server asks for; this process prints it on its console."""
    return "".join(secrets.choice(CODE_ALPHABET) for _ in range(CODE_CHARS))


class LoginRequiredMiddleware(middleware.LoginRequiredMiddleware):
    """Sends to the login page, or to the first-run page while no account exists.

    A fragment asked for by htmx sends the whole page there.
    """

    def handle_no_permission(  # type: ignore[override]
        self, request: HttpRequest, view_func: Callable[..., Any]
    ) -> HttpResponseBase:
        if not account_exists():
            return _go(request, reverse("setup"))
        query = QueryDict(mutable=True)
        if page := _page_to_return_to(request):
            query[self.redirect_field_name] = page
        return _go(request, reverse(settings.LOGIN_URL) + (f"?{query.urlencode(safe='/')}" if query else ""))


def _page_to_return_to(request: HttpRequest) -> str | None:
    if request.htmx:  # type: ignore[attr-defined]
        page: str | None = request.htmx.current_url_abs_path  # type: ignore[attr-defined]
        return page
    return request.get_full_path() if request.method == "GET" else None


def _go(request: HttpRequest, url: str) -> HttpResponseBase:
    return HttpResponseClientRedirect(url) if request.htmx else redirect(url)  # type: ignore[attr-defined]
