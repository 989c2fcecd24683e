"""manage.py createapikey NAME [--user U]: only the key goes to stdout, so that scripts can keep it."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.core.management import BaseCommand, CommandError, CommandParser

from localllm.gateway import home
from localllm.gateway.models import ApiKey


class Command(BaseCommand):
    help = "Make a key for API clients and print it. It is stored as a hash: this is the only time it is shown."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="what the key is for, such as “my laptop”")
        parser.add_argument("--user", help="whose key it is (default: the oldest admin)")

    def handle(self, *args: Any, name: str, user: str | None, **options: Any) -> str:
        home.prepare()
        return ApiKey.objects.issue(_owner(user), name)[1]


def _owner(name: str | None) -> User:
    users = User.objects.filter(is_active=True)
    if name is not None:
        if owner := users.filter(username=name).first():
            return owner
        raise CommandError(f"There is no active user named {name!r}. Make the account first, or leave --user out.")
    if owner := users.filter(is_superuser=True).order_by("date_joined", "pk").first():
        return owner
    raise CommandError(
        "There is no admin yet. Open the page of the running server and make the first account, or start it "
        "with DJANGO_SUPERUSER_USERNAME and DJANGO_SUPERUSER_PASSWORD set."
    )
