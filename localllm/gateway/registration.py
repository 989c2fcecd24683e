"""How a model file becomes a row: checked, tried out in a throw-away process, then remembered."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings

from localllm.gateway import database
from localllm.gateway.models import FileVersion, LanguageModel
from localllm.gateway.providers import local
from localllm.inference.engine.gguf import Header, check_name
from localllm.inference.engine.probe import probe
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import InferenceError

log = logging.getLogger(__name__)

STARTER: dict[str, Any] = {
    "title": "LocalLLM Starter 3M",
    "licence": "Apache-2.0",
    "is_starter": True,
    "system_prompt": "You are LocalLLM, a small starter model. Answer briefly.",
    "temperature": 0.3,
    "n_ctx": 1024,
    "num_slots": 4,
}


async def register(
    path: Path, *, name: str = "", file_name: str = "", make_default: bool = False, **defaults: Any
) -> LanguageModel:
    """Make or update the row of the file at `path`, which stays where it is. Raises ModelRefused.

    `file_name` is what it was called where it came from. `defaults` are fields of a new row; an existing one keeps
    its settings, and is probed with them.
    """
    path = path.expanduser().resolve()
    check_name(path)
    wanted = await database.read(_engine_settings, path, defaults)
    report = await probe(path, settings=await local.placed(path, wanted))
    defaults.setdefault("description", describe(report.header))
    return await database.write(
        LanguageModel.objects.register,
        path,
        name=name,
        file_name=file_name,
        make_default=make_default,
        is_embedding=report.header.is_embedding,
        **defaults,
    )


async def register_configured(say: Callable[[str], None]) -> None:
    """At start: the starter model, then LOCALLLM_MODEL as the default. A refusal is said, and no more."""
    starter = settings.STARTER_MODEL.resolve()
    await database.write(_follow_starter, starter)
    await _ensure(starter, say, name="starter", **STARTER)
    if settings.MODEL:
        await _ensure(Path(settings.MODEL).expanduser().resolve(), say, make_default=True)


async def _ensure(
    path: Path, say: Callable[[str], None], *, name: str = "", make_default: bool = False, **defaults: Any
) -> None:
    """Register `path`, unless it is known and has not changed: a second start must be quick."""
    row = await database.read(_unchanged_row, path)
    try:
        if row is None:
            say(f"Trying {path.name} …")
            await register(path, name=name, make_default=make_default, **defaults)
        elif make_default and not row.is_default:
            await database.write(row.make_default)
    except (InferenceError, OSError) as exc:
        say(str(exc))


def _engine_settings(path: Path, defaults: dict[str, Any]) -> EngineSettings:
    row = LanguageModel.objects.filter(files__path=str(path)).first() or LanguageModel(path=str(path), **defaults)
    return row.engine_settings


def _unchanged_row(path: Path) -> LanguageModel | None:
    file = FileVersion.objects.filter(path=str(path)).select_related("model").first()
    return file.model if file and path.is_file() and not file.has_changed_file else None


def _follow_starter(path: Path) -> None:
    """The starter lies in the program's own directory, which may have been moved."""
    if not LanguageModel.objects.filter(path=str(path)).exists():
        LanguageModel.objects.filter(is_starter=True).update(path=str(path))
        FileVersion.objects.filter(model__is_starter=True).update(path=str(path))


def describe(header: Header) -> str:
    """Such as `qwen2, 494M parameters, Q4_K_M`."""
    return f"{header.architecture}, {header.num_parameters / 1e6:,.0f}M parameters, {header.quantisation}"
