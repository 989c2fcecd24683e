"""How a smaller model is made of one that is here: asked for, quantised as a job, kept by its hash, registered."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from pathlib import Path

from django.db.models import F

from localllm.gateway import database, jobs
from localllm.gateway.downloads import store
from localllm.gateway.models import FileVersion, Job, LanguageModel
from localllm.gateway.registration import register
from localllm.inference import model_file
from localllm.inference.engine.gguf import Header, read_header
from localllm.inference.engine.quantise import check, quantise
from localllm.inference.errors import ModelRefused
from localllm.inference.model_file import Stamp

KIND = "quantise"


async def request(model: LanguageModel, recipe: str) -> Job:
    """Queue it, or share the job that makes it already; raises ModelRefused where it cannot be made.

    The job is the machine's, which makes one at a time.
    """
    check(await asyncio.to_thread(read_header, Path(model.path)), recipe)
    job = await database.write(_job, model, recipe)
    jobs.runner.wake()
    return job


def _job(model: LanguageModel, recipe: str) -> Job:
    same = Job.objects.filter(kind=KIND, parameters__model=model.pk, parameters__recipe=recipe)
    return same.filter(state__in=Job.LIVE).first() or Job.objects.create(
        kind=KIND, title=f"{model} as {recipe}"[:300], parameters={"model": model.pk, "recipe": recipe}
    )


async def run(job: Job) -> None:
    """The kind `quantise`, from the beginning each time. Raises InferenceError.

    Afterwards `parameters["made"]` is the id of the new model.
    """
    model = await database.read(LanguageModel.objects.filter(pk=job.parameters["model"]).first)
    if model is None:
        raise ModelRefused("The model it was to be made of has been deleted.")
    source = Path(model.path)
    header = await asyncio.to_thread(read_header, source)
    recipe = check(header, job.parameters["recipe"])
    target = store().folder / f"{job.pk}.quantised"
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob("*.quantised"):  # of a process that was killed: no other is at it now
        leftover.unlink()
    async with aclosing(quantise(source, target, recipe)) as steps:
        async for step in steps:
            if not await database.store(job.advance, step.num_done, step.num_tensors):
                return
    sha256 = await asyncio.to_thread(model_file.sha256, target)
    path = await asyncio.to_thread(store().adopt, target, sha256)
    made = await _register(path, sha256, model, header, recipe)
    await database.store(_complete, job, made)


async def _register(path: Path, sha256: str, model: LanguageModel, header: Header, recipe: str) -> LanguageModel:
    stamp = Stamp.of(path)
    name = _renamed(model.name, header.quantisation, recipe)
    try:
        return await register(
            path,
            name=name,
            file_name=f"{name}.gguf",
            title=_renamed(str(model), header.quantisation, recipe)[:200],
            sha256=sha256,
            size_bytes=stamp.size_bytes,
            file_mtime_ns=stamp.mtime_ns,
            file_inode=stamp.inode,
            **model.inherited(),
        )
    except BaseException:  # refused, or cancelled
        if not await database.read(FileVersion.objects.filter(path=str(path)).exists):
            path.unlink()
        raise


def _renamed(name: str, old: str, new: str) -> str:
    """Named after the new type instead of the old one."""
    return re.sub(rf"[-_. ]*\b{re.escape(old)}$", "", name, flags=re.IGNORECASE) + f" {new}"


def _complete(job: Job, made: LanguageModel) -> None:
    Job.objects.filter(pk=job.pk).update(num_done=F("num_total"), parameters=job.parameters | {"made": made.pk})
