"""How a model file becomes a row: checked, tried out in a throw-away process, then remembered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings
from msgspec.structs import replace

from localllm.gateway import database, fitting
from localllm.gateway.models import FileVersion, LanguageModel
from localllm.gateway.providers import local
from localllm.inference.engine.gguf import Header, check_name, read_header
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
    its settings, and is probed with them. Where nobody chose its context window, a new one gets the usual, or the
    largest for which this machine has room.
    """
    path = path.expanduser().resolve()
    check_name(path)
    header = await asyncio.to_thread(read_header, path)
    await local.look_for_gpu()
    wanted = await database.read(_engine_settings, path, header, defaults)
    await probe(path, settings=await local.placed(path, wanted))
    defaults = {"description": describe(header), "n_ctx": wanted.n_ctx, **defaults}
    return await database.write(
        LanguageModel.objects.register,
        path,
        name=name,
        file_name=file_name,
        make_default=make_default,
        is_embedding=header.is_embedding,
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


def _engine_settings(path: Path, header: Header, defaults: dict[str, Any]) -> EngineSettings:
    if row := LanguageModel.objects.filter(files__path=str(path)).first():
        return row.engine_settings
    usual = LanguageModel(path=str(path), **defaults).engine_settings
    return usual if "n_ctx" in defaults else replace(usual, n_ctx=fitting.window(header, usual))


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
