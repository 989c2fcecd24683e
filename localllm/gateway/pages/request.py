"""What a view behind the login is asked with."""

from __future__ import annotations

from django.contrib.auth.models import User
from django.http import HttpRequest
from django_htmx.middleware import HtmxDetails


class Request(HttpRequest):
    """As the middleware leaves it."""

    htmx: HtmxDetails
    user: User


def unix_lines(text: str) -> str:
    """Browsers send line ends as CRLF; compared with what is stored, every line would have changed."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
