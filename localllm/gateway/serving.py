"""Models in memory: what pages and admin may do with them, and what keeps rows, files and workers together.

It knows rows and the embedded provider; who gets which memory, the provider decides. The coroutines belong on the
server's event loop, where `async_to_sync` in a page's thread brings them; the functions may be called from any thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from django.db import DatabaseError

from localllm.gateway import database
from localllm.gateway.models import LanguageModel
from localllm.gateway.models.language_model import ModelError
from localllm.gateway.providers import local
from localllm.gateway.registration import register
from localllm.inference.errors import InferenceError, ModelRefused, NoRoom, ProviderError
from localllm.inference.memory import Machine
from localllm.inference.model_file import Stamp
from localllm.inference.providers.llamacpp import Measurements, Serving
from localllm.inference.types import ChatRequest, Event, Loading, Message

log = logging.getLogger(__name__)

AT_ONCE_S = 0.5  # what a load that cannot begin is known in
MEASURE_LIMIT_S = 90.0  # for who waits for it
LOOK_EVERY_S = 10.0  # for loaded models whose file has changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What all models together may take, and what the loaded ones hold of it."""

    budget_bytes: int
    held_bytes: int


# From any thread


def state(model: LanguageModel) -> Serving:
    """How it is being served now. Cheap: nothing is asked of its worker."""
    return local.state(model.local())


def memory() -> Memory:
    return Memory(budget_bytes=local.budget_bytes, held_bytes=local.held_bytes)


def machine() -> Machine:
    """This machine, of which models may take the share that is set; graphics memory as of the last load."""
    return local.machine()


# On the event loop: requests


async def stream(model: LanguageModel, request: ChatRequest) -> AsyncGenerator[Event]:
    """The provider's events. What is not in memory yet is loaded, and measured once."""
    if not state(model).is_loaded:
        _begin(model)
    async with aclosing(local.stream(model.local(), request)) as events:
        async for event in events:
            yield event


async def loading(model: LanguageModel) -> AsyncGenerator[Loading]:
    """How far loading is, until it is ready to be asked; nothing if it is."""
    model = await current(model)
    if not state(model).is_loaded:
        _begin(model)
    async with aclosing(local.loading(model.local())) as events:
        async for event in events:
            yield event


async def count(model: LanguageModel, messages: tuple[Message, ...]) -> int:
    """Exact number of prompt tokens, chat template included. A model that is not in memory is loaded."""
    return await local.count(model.local(), messages)


async def current(model: LanguageModel) -> LanguageModel:
    """The row as its file is: one that was replaced is tried out and hashed before it is loaded.

    Raises ProviderError when it does not pass. A model that is loaded goes on, whatever lies at its path.
    """
    if state(model).is_loaded or not model.has_changed_file:
        return model
    return await _follow_file(model)


# On the event loop: the verbs of pages and admin


async def load(model: LanguageModel) -> None:
    """Begin to load it; `state` tells how far it is. Raises ProviderError for what is known at once, such as NoRoom."""
    task = _begin(await current(model))
    await asyncio.wait([task], timeout=AT_ONCE_S)
    if task.done():
        await task


async def unload(model: LanguageModel) -> None:
    """Take it out of memory, when its running replies have ended. The next request loads it again."""
    await local.unload(model.local())


async def cancel_load(model: LanguageModel) -> None:
    """Stop loading it; requests that wait for it fail with a sentence. Raises ModelError when it is not loading."""
    if not await local.cancel_load(model.local()):
        raise ModelError(f"{model} is not being loaded: it is ready already, or was stopped. Unload it if it shall go.")


async def make_default(model: LanguageModel) -> None:
    """Switch without a gap: it is loaded first, then it is the default, then the old one ends with its last reply.

    Where both have no room, new requests wait until the old one has ended. Raises ModelError, or ProviderError when
    it will not load, and then changes nothing.
    """
    model.check_may_be_default()
    model = await current(model)
    before = await database.read(LanguageModel.objects.filter(is_default=True).exclude(pk=model.pk).first)
    has_room = await _load_if_room(model)
    await _write(model, model.make_default)
    if before and not (before.is_preloaded and has_room):
        await unload(before)
    _begin(model)


async def change(model: LanguageModel, save: Callable[[], None] | None = None) -> None:
    """Save a row with another file or other settings, without a gap: its new worker is loaded first.

    `save` is for who stores more than this row. Where both workers have no room, new requests wait until the old one
    has ended. Raises ProviderError, and saves nothing, when it will not load; ModelError when it was deleted meanwhile.
    """
    before = await database.read(LanguageModel.objects.get, pk=model.pk)
    is_swap = before.local() != model.local() and state(before).is_loaded
    if is_swap:
        await _load_if_room(model)
    await _write(model, save or partial(model.save_what_differs, before))
    local.rename(before.name, model.name)
    if is_swap:
        _begin(model)


async def delete(model: LanguageModel) -> None:
    """Delete the row; its running replies end first. The file stays."""
    await database.write(model.delete)
    await unload(model)


async def measure(model: LanguageModel) -> Measurements:
    """Load it if need be, and measure it as soon as it is idle. Raises ProviderError when it is not for long."""
    try:
        async with asyncio.timeout(MEASURE_LIMIT_S):
            return await _measured(model)
    except TimeoutError:
        raise ProviderError(
            f"{model} was not measured: it was not idle long enough for it in {MEASURE_LIMIT_S:.0f} s. Try again when "
            "fewer requests are under way."
        ) from None


# At start


async def start(say: Callable[[str], None]) -> None:
    """Begin to load the default model and those that should be there; it goes on while the first page is asked for."""
    wanted = await database.read(_preloaded)
    if not wanted or not wanted[0].is_default:
        say("There is no model yet: register one with `manage.py registermodel PATH`.")
    _keep(_preload(wanted, say))
    _keep(_watch_files())


async def drain(seconds: float) -> None:
    """At shutdown: begin nothing new. Workers end with this process."""
    tasks = list(_tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)


def _preloaded() -> list[LanguageModel]:
    """The default first."""
    models = LanguageModel.objects
    return [*models.filter(is_default=True), *models.filter(is_default=False, is_preloaded=True, is_enabled=True)]


async def _preload(models: list[LanguageModel], say: Callable[[str], None]) -> None:
    for model in models:
        try:
            await _begin(await current(model))
        except InferenceError as exc:
            say(str(exc))


async def _write(model: LanguageModel, save: Callable[[], None]) -> None:
    """The worker that was loaded for it must not outlive a model that somebody deleted meanwhile."""
    try:
        await database.write(save)
    except ModelError:
        await unload(model)
        raise


async def _load_if_room(model: LanguageModel) -> bool:
    try:
        await local.load(model.local())
    except NoRoom:
        return False
    return True


# In the background

_tasks: set[asyncio.Task[None]] = set()


def _keep(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run it as a task of the server."""
    task = asyncio.create_task(work)
    _tasks.add(task)
    task.add_done_callback(_drop)
    return task


def _drop(task: asyncio.Task[None]) -> None:
    _tasks.discard(task)
    if not task.cancelled() and (exc := task.exception()):
        log.info("%s", exc)  # those who asked for it have heard of it


def _begin(model: LanguageModel) -> asyncio.Task[None]:
    """Load it; when that is done, older workers of the model end, and it is measured if that is new."""
    return _keep(_load(model))


async def _load(model: LanguageModel) -> None:
    await local.load(model.local())
    await local.retire_older(model.local())
    if not model.is_measured:
        _keep(_measure(model))


async def _measure(model: LanguageModel) -> None:
    with suppress(ProviderError):  # it was unloaded before its turn came
        await _measured(model)


async def _measured(model: LanguageModel) -> Measurements:
    measured = await local.measure(model.local())
    await database.store(model.remember_measurements, measured)
    return measured


# Files that were replaced

_refused: dict[int, tuple[Stamp, str]] = {}  # by model: a file that did not pass, and why
_following = asyncio.Lock()


async def _follow_file(model: LanguageModel) -> LanguageModel:
    """The row of the file that lies there now. Raises ProviderError when it does not pass its trial."""
    path = Path(model.path)
    async with _following:
        try:
            stamp = Stamp.of(path)
            if _refused.get(model.pk, (None, ""))[0] == stamp:
                raise ModelRefused(_refused[model.pk][1])
            return await register(path)
        except ModelRefused as exc:
            _refused[model.pk] = (stamp, str(exc))
            raise ProviderError(f"The file of {model} was replaced. {exc}", permanent=True) from exc
        except OSError as exc:
            raise ProviderError(f"The file of {model} cannot be read: {exc}.", permanent=True) from exc


async def _watch_files() -> None:
    """A loaded model whose file was replaced goes on with the old one until the new one has passed its trial."""
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            for model in await database.read(_with_changed_files):
                await _reload(model)
        except DatabaseError as exc:
            log.error("Whether files of models were replaced is not known now: %s", exc)


async def _reload(model: LanguageModel) -> None:
    try:
        await load(await _follow_file(model))
    except ProviderError as exc:
        log.warning("%s", exc)


def _with_changed_files() -> list[LanguageModel]:
    return [model for model in LanguageModel.objects.all() if state(model).is_loaded and model.has_changed_file]
