"""manage.py serve: everything from an empty data directory to a page that answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.management import BaseCommand
from django.utils.module_loading import import_string

from localllm.gateway import checks, home  # noqa: F401  they run before this command does
from localllm.gateway.security.first_run import account_exists, first_run_code, is_exposed

RUN = "localllm.asgi.run"  # the wiring lies above this floor


class Command(BaseCommand):
    help = "Bring the database up to date and serve on HOST and PORT until SIGTERM or Ctrl+C."

    def handle(self, *args: Any, **options: Any) -> None:
        os.umask(0o077)  # conversations are for the eyes of this account
        home.prepare()
        with home.served():
            import_string(RUN)(
                host=settings.HOST, port=settings.PORT, say=self.say, on_ready=self.ready_with(_first_steps())
            )

    def say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()

    def ready_with(self, first_steps: list[str]) -> Callable[[str], None]:
        return lambda url: self.say("\n".join([f"LocalLLM is ready at {url}", *first_steps]))


def _first_steps() -> list[str]:
    if account_exists():
        return []
    steps = ["Open it to make the first account, which becomes the admin."]
    return [*steps, f"The page asks for this code: {first_run_code()}"] if is_exposed() else steps
