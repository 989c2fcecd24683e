"""manage.py registermodel PATH: try a GGUF file out and make it known. A running server sees it at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from django.core.management import BaseCommand, CommandError, CommandParser

from localllm.gateway import home
from localllm.gateway.registration import register
from localllm.inference.errors import InferenceError


class Command(BaseCommand):
    help = "Register a GGUF file as a model; it stays where it is."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("path", type=Path)
        parser.add_argument("--name", default="", help="what API clients call it (default: after the file)")
        parser.add_argument("--default", action="store_true", help="make it the default model")

    def handle(self, *args: Any, path: Path, name: str, default: bool, **options: Any) -> str:
        home.prepare()
        try:
            model = asyncio.run(register(path, name=name, make_default=default))
        except (InferenceError, OSError) as exc:
            raise CommandError(str(exc)) from exc
        return f"{model.name}{' (the default model)' if model.is_default else ''}: {model.description}"
