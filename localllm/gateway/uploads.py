"""How a file of a browser becomes a model: received in chunks, refused as early as can be, checked, registered.

What has come lies in the store under the id of its row, and the size of that file is the truth about how far it is.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path, PurePath

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import F, Sum
from django.utils import timezone

from localllm.gateway import database, jobs
from localllm.gateway.downloads import store
from localllm.gateway.models import FileVersion, Job, LanguageModel, Upload
from localllm.gateway.registration import describe, register
from localllm.inference import model_file
from localllm.inference.chunked_file import WrongOffset, append
from localllm.inference.engine.gguf import read_beginning
from localllm.inference.errors import HubError, InferenceError, ModelRefused
from localllm.inference.model_file import Stamp

ABANDONED_AFTER = timedelta(days=7)
MAX_NAME = 300


def begin(user: User, name: str, size_bytes: int, modified_ms: int = 0) -> Upload:
    """A new upload, or the unfinished one of the same file: of that name, size and time. Raises InferenceError."""
    name = PurePath(name.replace("\\", "/")).name[-MAX_NAME:]
    if not name.lower().endswith(".gguf"):
        raise ModelRefused(f"“{name}” is no model file. Choose one whose name ends with .gguf.")
    remove_abandoned()
    same = {"name": name, "size_bytes": size_bytes, "modified_ms": modified_ms}
    known = Upload.objects.of(user).unfinished().filter(**same).first()
    if known is not None:
        known.num_bytes = _size(known)
        known.save(update_fields=["num_bytes", "updated_at"])
        return known
    promised = Upload.objects.unfinished().aggregate(bytes=Sum(F("size_bytes") - F("num_bytes")))["bytes"] or 0
    store().check_room(name, size_bytes + promised)
    return Upload.objects.create(user=user, **same)


def receive(upload: Upload, offset: int, chunk: bytes) -> None:
    """Append a chunk. Raises WrongOffset, and InferenceError where the file will be no model or the disk is full."""
    if upload.state != "receiving":
        raise WrongOffset(_size(upload))
    if offset + len(chunk) > upload.size_bytes:
        raise ModelRefused(f"{upload} is longer than the {upload.size_bytes:,} bytes that were told. Begin anew.")
    upload.num_bytes = append(_path(upload), offset, chunk)
    _look_at_header(upload)
    if upload.num_bytes == upload.size_bytes:
        _check(upload)
    else:
        upload.save(update_fields=["num_bytes", "description", "updated_at"])


def cancel(upload: Upload) -> None:
    """Forget it, and what came of it. A model that it has become stays."""
    if upload.job is not None:
        upload.job.cancel()
        jobs.runner.wake()
    _path(upload).unlink(missing_ok=True)
    place = store().folder / f"{upload.sha256}.gguf"
    if not FileVersion.objects.filter(path=str(place)).exists():
        store().remove(place)
    upload.delete()


def remove_abandoned() -> None:
    """Rows that nobody has touched for a week, and files without a row."""
    Upload.objects.abandoned(since=timezone.now() - ABANDONED_AFTER).delete()
    for path in store().folder.glob("*.upload"):
        if not Upload.objects.filter(pk=path.stem).exists():
            path.unlink(missing_ok=True)


async def run(job: Job) -> None:
    """The kind `upload`: what is whole becomes a model. Raises InferenceError; then nothing is kept of it."""
    upload = await database.read(Upload.objects.select_related("user").get, job=job)
    try:
        model = await _register(upload, await _adopt(upload))
    except InferenceError:
        _path(upload).unlink(missing_ok=True)
        raise
    await database.store(Upload.objects.filter(pk=upload.pk).update, model=model)


async def _register(upload: Upload, path: Path) -> LanguageModel:
    stamp, label = Stamp.of(path), PurePath(upload.name).stem
    try:
        return await register(
            path,
            name=label,
            file_name=upload.name,
            title=label[:200],
            sha256=upload.sha256,
            size_bytes=stamp.size_bytes,
            file_mtime_ns=stamp.mtime_ns,
            file_inode=stamp.inode,
        )
    except InferenceError:
        if not await database.read(FileVersion.objects.filter(path=str(path)).exists):
            path.unlink()
        raise


async def _adopt(upload: Upload) -> Path:
    """Its place by its hash, which is noted first: a restart may come in between."""
    try:
        if not upload.sha256:
            upload.sha256 = await asyncio.to_thread(model_file.sha256, _path(upload))
            await database.store(upload.save, update_fields=["sha256"])
        return await asyncio.to_thread(store().adopt, _path(upload), upload.sha256)
    except OSError as exc:
        raise HubError(f"What was uploaded of {upload} is gone ({exc.strerror}). Upload it again.") from exc


def _look_at_header(upload: Upload) -> None:
    """As soon as the header is here; then whoever sends gigabytes of something else need not go on."""
    if upload.description:
        return
    try:
        header = read_beginning(_path(upload), upload.size_bytes, upload.name)
    except ModelRefused as exc:
        upload.error = str(exc)
        upload.save(update_fields=["num_bytes", "error", "updated_at"])
        _path(upload).unlink()
        raise
    upload.description = describe(header) if header else ""


def _check(upload: Upload) -> None:
    """It is whole: the job takes over."""
    with transaction.atomic():
        upload.job = Job.objects.create(kind=Upload.KIND, title=f"{upload} from a browser"[:300])
        upload.save()
    jobs.runner.wake()


def _size(upload: Upload) -> int:
    try:
        return _path(upload).stat().st_size
    except FileNotFoundError:
        return 0


def _path(upload: Upload) -> Path:
    return settings.HOME / "models" / f"{upload.pk}.upload"
