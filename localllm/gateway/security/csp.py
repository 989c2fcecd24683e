"""The Content-Security-Policy header, with a new nonce for each response. Django 6 has its own: use that then.

Names are Django 6's; the admin's scripts carry no nonce, so its pages may load scripts of this server.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest
from django.http.response import HttpResponseBase

_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class ContentSecurityPolicyMiddleware:
    sync_capable = async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        request.csp_nonce = secrets.token_urlsafe(16)  # type: ignore[attr-defined]
        response = self.get_response(request)
        if isinstance(response, HttpResponseBase):
            return _with_policy(request, response)
        return self._answer(request, response)

    async def _answer(self, request: HttpRequest, response: Awaitable[HttpResponseBase]) -> HttpResponseBase:
        return _with_policy(request, await response)


def _with_policy(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    scripts = f"'nonce-{csp_nonce(request)['csp_nonce']}'"
    if request.resolver_match and "admin" in request.resolver_match.app_names:
        scripts += " 'self'"
    response["Content-Security-Policy"] = _POLICY.format(scripts=scripts)
    return response


def csp_nonce(request: HttpRequest) -> dict[str, str]:
    """Context processor: `{{ csp_nonce }}` for `<script nonce="…">`."""
    return {"csp_nonce": getattr(request, "csp_nonce", "")}
