"""Django's own middlewares without a thread for each of their steps: fourteen of those took 2 ms of every request.

They only compute, so the event loop does it; what may ask the database still goes into a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.auth import middleware as auth
from django.contrib.messages import get_messages
from django.contrib.messages import middleware as messages
from django.contrib.sessions import middleware as sessions
from django.http import HttpRequest
from django.middleware import clickjacking, common, csrf, security
from django.utils.deprecation import MiddlewareMixin

SAFE_METHODS = ("GET", "HEAD", "OPTIONS", "TRACE")
View = Callable[..., Any]


class InLoop(MiddlewareMixin):
    """Goes in front of a middleware of Django's. Under a sync handler that does what it always does."""

    get_response: Any
    process_request: Any
    process_response: Any
    process_view: Any

    def __init__(self, get_response: Any) -> None:
        super().__init__(get_response)
        if self.async_mode and hasattr(self, "process_view"):
            self._process_view, self.process_view = self.process_view, self._process_view_in_loop

    async def __acall__(self, request: HttpRequest) -> Any:
        response = self.process_request(request) if hasattr(self, "process_request") else None
        response = response or await self.get_response(request)
        if not hasattr(self, "process_response"):
            return response
        if self.may_store(request):
            return await sync_to_async(self.process_response)(request, response)
        return self.process_response(request, response)

    async def _process_view_in_loop(self, request: HttpRequest, view: View, *args: Any) -> Any:
        if self.lets_pass(request, view):
            return None
        return await sync_to_async(self._process_view)(request, view, *args)

    def may_store(self, request: HttpRequest) -> bool:
        """Whether `process_response` may ask the database."""
        return False

    def lets_pass(self, request: HttpRequest, view: View) -> bool:
        """Whether it is plain, without the database and the body, that `process_view` has no objection."""
        return False


class SecurityMiddleware(InLoop, security.SecurityMiddleware):
    pass


class SessionMiddleware(InLoop, sessions.SessionMiddleware):
    def may_store(self, request: HttpRequest) -> bool:
        return bool(request.session.modified)


class CommonMiddleware(InLoop, common.CommonMiddleware):
    pass


class CsrfViewMiddleware(InLoop, csrf.CsrfViewMiddleware):
    def lets_pass(self, request: HttpRequest, view: View) -> bool:
        return request.method in SAFE_METHODS or getattr(view, "csrf_exempt", False)


class AuthenticationMiddleware(InLoop, auth.AuthenticationMiddleware):
    pass


class LoginRequiredMiddleware(InLoop, auth.LoginRequiredMiddleware):
    def lets_pass(self, request: HttpRequest, view: View) -> bool:
        return not getattr(view, "login_required", True)


class MessageMiddleware(InLoop, messages.MessageMiddleware):
    def may_store(self, request: HttpRequest) -> bool:
        storage: Any = get_messages(request)
        return bool(storage.used or storage.added_new)


class XFrameOptionsMiddleware(InLoop, clickjacking.XFrameOptionsMiddleware):
    pass
