"""How a file of the hub becomes a model of this machine: asked for, downloaded as a job, checked, registered."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User

from localllm.gateway import catalogue, database, fitting, jobs
from localllm.gateway.catalogue import Entry
from localllm.gateway.models import Download, FileVersion, Job, LanguageModel
from localllm.gateway.registration import register
from localllm.inference.errors import HubError
from localllm.inference.hub.client import Hub
from localllm.inference.hub.download import download
from localllm.inference.hub.files import HubFile, Repository
from localllm.inference.hub.store import Store
from localllm.inference.model_file import Stamp

TELL_EVERY_S = 0.5


def hub() -> Hub:
    return Hub(endpoint=settings.HF_ENDPOINT, token=settings.HF_TOKEN, is_offline=settings.OFFLINE)


def store() -> Store:
    return Store(settings.HOME / "models")


async def request(
    repo: str, name: str, *, revision: str = "main", user: User | None = None, **defaults: Any
) -> Download:
    """Queue a file of a repository, as it is there now. `defaults` are fields of its model. Raises HubError."""
    repository = await hub().repository(repo, revision)
    return await _queue(repository, repository.file(name), user, defaults)


async def request_best(entry: Entry, *, user: User | None = None) -> Download:
    """Queue that file of a model of the catalogue which suits this machine best. Raises HubError."""
    repository = await hub().repository(entry.repository)
    files = {file.quantisation: file for file in repository.files}
    best = await database.read(fitting.best, entry, files)
    if best is None:
        names = ", ".join(file.name for file in repository.files) or "none"
        raise HubError(
            f"{repository.name} has no file in a quantisation that is known here. Its GGUF files: {names}. "
            "Choose one on the page of the repository.",
            permanent=True,
        )
    return await _queue(repository, files[best], user, {})


async def _queue(repository: Repository, file: HubFile, user: User | None, defaults: dict[str, Any]) -> Download:
    defaults = {"repository": repository.name, "licence": repository.licence, **defaults}
    if entry := catalogue.of_repository(repository.name):
        defaults |= {"licence": entry.licence, "title": f"{entry.name} {file.quantisation}".rstrip()}
    row = await database.write(Download.objects.request, file, user, **defaults)
    jobs.runner.wake()
    return row


async def cancel(row: Download) -> bool:
    """Stop it for good and remove what came. What is complete stays: then it is False."""
    if not await database.write(row.job.cancel):
        return False
    jobs.runner.wake()
    await _discard(row)
    return True


async def run(job: Job) -> None:
    """The kind `download`: from where it stands to a model. Raises InferenceError."""
    row = await database.read(Download.objects.get, job=job)
    row.job = job
    async with store().alone():
        try:
            if await _transfer(row):
                await database.store(row.complete, await _register(row))
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


async def _register(row: Download) -> LanguageModel:
    file, path = row.file, store().path(row.file)
    stamp = Stamp.of(path)
    known: dict[str, Any] = {
        "sha256": file.sha256,
        "size_bytes": stamp.size_bytes,
        "file_mtime_ns": stamp.mtime_ns,
        "file_inode": stamp.inode,
    }
    defaults = {"title": file.label[:200], **row.defaults}
    return await register(path, name=file.label, file_name=file.name[:300], **known, **defaults)


async def _discard(row: Download) -> None:
    """Unless a model has it: a download may be cancelled that was asked for a second time."""
    file = row.file
    if not await database.read(FileVersion.objects.filter(path=str(store().path(file))).exists):
        await asyncio.to_thread(store().discard, file)


def _is_cancelled(job: Job) -> bool:
    return Job.objects.filter(pk=job.pk, state="cancelled").exists()
