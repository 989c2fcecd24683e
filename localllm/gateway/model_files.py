"""What becomes of the files of models: another one serves, an older one again, one is not wanted any more.

Joins rows, workers and the store of downloads. A file that was registered where it lies is its owner's: it is read,
and never touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from django.db import transaction

from localllm.gateway import database, serving
from localllm.gateway.downloads import store
from localllm.gateway.models import FileVersion, LanguageModel
from localllm.gateway.models.language_model import ModelError
from localllm.gateway.providers import local
from localllm.gateway.registration import register
from localllm.inference.engine.probe import probe
from localllm.inference.errors import ModelRefused


async def replace(model: LanguageModel, other: LanguageModel) -> None:
    """Let `model` answer with the file of `other`, which becomes a version of it. Running replies end on the old one.

    Raises ModelError, and InferenceError when the file will not load with these settings. Then nothing has changed.
    """
    model.check_may_take(other)
    file = await database.read(lambda: other.current_file)
    await _check(file)
    path = Path(file.path)
    await probe(path, settings=await local.placed(path, model.engine_settings))
    await serving.change(model.become(file), save=partial(_take, model, other))
    await serving.unload(other)


def _take(model: LanguageModel, other: LanguageModel) -> None:
    with transaction.atomic():
        model.become(model.take_over(other)).save_again(model.field_names())


async def roll_back(model: LanguageModel, file: FileVersion) -> None:
    """Answer with that version from the next request on. Raises InferenceError when it will not load."""
    await _check(file)
    await serving.change(model.become(file))


async def _check(file: FileVersion) -> None:
    """It is there, and what lies there has passed its trial. Raises InferenceError."""
    path = Path(file.path)
    if not await asyncio.to_thread(path.is_file):
        raise ModelRefused(f"The file of this version is gone: {path}. Put it back, or remove the version.")
    if file.has_changed_file:
        await register(path)  # tries it out, as any file that nobody knows
        await database.read(file.refresh_from_db)


async def remove_version(file: FileVersion) -> None:
    """Raises ModelError for the one that serves."""
    if file.is_current:
        raise ModelError(f"{file} is what {file.model} answers with. Roll back to another version first.")
    await database.write(file.delete)
    await _delete_unused([file.path])


async def remove(model: LanguageModel) -> None:
    """Delete the model; its running replies end first, and its conversations go on with the default.

    Raises ModelError.
    """
    model.check_may_go()
    paths = await database.read(list, model.files.values_list("path", flat=True))
    await serving.delete(model)
    await _delete_unused(paths)


async def clear_away(model: LanguageModel, paths: Iterable[str]) -> None:
    """Of a model whose row is gone: end its worker with its last reply, and delete what nobody else needs."""
    await serving.unload(model)
    await _delete_unused(paths)


async def _delete_unused(paths: Iterable[str]) -> None:
    """Those that lie in the store and that nothing refers to any more."""
    for path in paths:
        if not await database.read(_is_used, path):
            await asyncio.to_thread(store().remove, Path(path))


def _is_used(path: str) -> bool:
    return FileVersion.objects.filter(path=path).exists() or LanguageModel.objects.filter(path=path).exists()
