"""What becomes of the files of models: another one serves, an older one again, one is not wanted any more.

Joins rows, workers and the store of downloads. A file that was registered where it lies is its owner's: it is read,
and never touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from localllm.gateway import database, serving
from localllm.gateway.downloads import store
from localllm.gateway.models import FileVersion, LanguageModel
from localllm.gateway.models.language_model import ModelError
from localllm.gateway.registration import register
from localllm.inference.errors import ModelRefused


async def replace(model: LanguageModel, other: LanguageModel) -> None:
    """Let `model` answer with the file of `other`, which becomes a version of it. Running replies end on the old one.

    Raises ModelError, and InferenceError when the file will not load: then it is a version that does not serve.
    """
    file = await database.write(model.take_over, other)
    await serving.unload(other)
    await roll_back(model, file)


async def roll_back(model: LanguageModel, file: FileVersion) -> None:
    """Answer with that version from the next request on. Raises InferenceError when it will not load."""
    path = Path(file.path)
    if not await asyncio.to_thread(path.is_file):
        raise ModelRefused(f"The file of this version is gone: {path}. Put it back, or remove the version.")
    if file.has_changed_file:
        await register(path)  # tries it out, as any file that nobody knows
        await database.read(file.refresh_from_db)
    await serving.change(model.become(file))


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
