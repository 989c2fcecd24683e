"""What a view behind the login is asked with."""

from __future__ import annotations

from django.contrib.auth.models import User
from django.http import HttpRequest
from django_htmx.middleware import HtmxDetails


class Request(HttpRequest):
    """As the middleware leaves it."""

    htmx: HtmxDetails
    user: User
