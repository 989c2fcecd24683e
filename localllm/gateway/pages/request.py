"""What a view behind the login is asked with, and how it answers htmx."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django_htmx.middleware import HtmxDetails


class Request(HttpRequest):
    """As the middleware leaves it."""

    htmx: HtmxDetails
    user: User


def page_or_part(request: Request, page: str, context: dict[str, Any]) -> HttpResponse:
    """`folder/name.html`; for htmx only what lies within it, `folder/_name.html`."""
    return render(request, page.replace("/", "/_") if request.htmx else page, context)


def unix_lines(text: str) -> str:
    """Browsers send line ends as CRLF; compared with what is stored, every line would have changed."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
