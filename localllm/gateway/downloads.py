"""How a file of the hub becomes a model of this machine: asked for, downloaded as a job, checked, registered."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

from django.conf import settings
from django.contrib.auth.models import User

from localllm.gateway import database, jobs
from localllm.gateway.models import Download, Job, LanguageModel
from localllm.gateway.registration import register
from localllm.inference.hub.client import Hub
from localllm.inference.hub.download import download
from localllm.inference.hub.files import SPLIT, HubFile
from localllm.inference.hub.store import Store

TELL_EVERY_S = 0.5


def hub() -> Hub:
    return Hub(endpoint=settings.HF_ENDPOINT, token=settings.HF_TOKEN, is_offline=settings.OFFLINE)


def store() -> Store:
    return Store(settings.HOME / "models")


async def request(repo: str, name: str, *, revision: str = "main", user: User | None = None) -> Download:
    """Queue a file of a repository, as it is there now. Raises HubError."""
    file = await hub().find_file(repo, name, revision)
    row = await database.write(Download.objects.request, file, user)
    jobs.runner.wake()
    return row


async def cancel(row: Download) -> None:
    """Stop it for good and remove what came. What is complete stays."""
    if await database.write(row.job.cancel):
        jobs.runner.wake()
        await _discard(row)


async def run(job: Job) -> None:
    """The kind `download`: from where it stands to a model. Raises InferenceError."""
    row = await database.read(Download.objects.get, job=job)
    row.job = job
    async with store().alone():
        try:
            if await _transfer(row):
                await database.store(row.complete, await _register(row.file))
        finally:
            if await database.read(_is_cancelled, job):
                await _discard(row)


async def _transfer(row: Download) -> bool:
    """Whether the file is here; else its job was paused or cancelled."""
    now = asyncio.get_running_loop().time
    told_at = 0.0
    async with aclosing(download(hub(), row.file, store())) as steps:
        async for progress in steps:
            if progress.delay or now() - told_at >= TELL_EVERY_S:
                if not await database.store(row.advance, progress):
                    return False
                told_at = now()
    return True


async def _register(file: HubFile) -> LanguageModel:
    path = store().path(file)
    stat = path.stat()
    split = SPLIT.fullmatch(file.name)
    label = Path(split["stem"] if split else file.name.removesuffix(".gguf")).name
    return await register(
        path, name=label, title=label[:200], sha256=file.sha256, size_bytes=stat.st_size, file_mtime_ns=stat.st_mtime_ns
    )


async def _discard(row: Download) -> None:
    """Unless it serves as a model: a download may be cancelled that was asked for a second time."""
    file = row.file
    if not await database.read(LanguageModel.objects.filter(path=str(store().path(file))).exists):
        await asyncio.to_thread(store().discard, file)


def _is_cancelled(job: Job) -> bool:
    return Job.objects.filter(pk=job.pk, state="cancelled").exists()
