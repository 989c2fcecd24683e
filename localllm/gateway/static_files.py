"""Static files from the event loop: whitenoise finds them, and they are small enough to be read at once.

Its own middleware is sync only, and one such middleware would move every request into a thread, where a
client that goes away no longer cancels anything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from whitenoise.middleware import WhiteNoiseMiddleware


class StaticFilesMiddleware(WhiteNoiseMiddleware):  # type: ignore[misc]
    sync_capable = async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]) -> None:
        super().__init__(get_response)
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        file = self.files.get(request.path_info)
        if file is None:
            return self.get_response(request)  # type: ignore[no-any-return]
        response = _respond(file, request)
        return _at_once(response) if iscoroutinefunction(self) else response


def _respond(file: object, request: HttpRequest) -> HttpResponse:
    found = file.get_response(request.method, request.META)  # type: ignore[attr-defined]
    content = b""
    if found.file is not None:
        with found.file:
            content = found.file.read()
    response = HttpResponse(content, status=int(found.status))
    del response["Content-Type"]
    for name, value in found.headers:
        response[name] = value
    return response


async def _at_once(response: HttpResponse) -> HttpResponse:
    return response
