"""A logged generation, run again: everything its record names is found and checked, then an engine of its own runs it.

What is gone or another is said in words (InferenceError); what may explain a difference is noted beside it.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import msgspec
from django.db.models import QuerySet

from localllm.gateway import database
from localllm.gateway.completions import MACHINE
from localllm.gateway.models import FileVersion, Job, LanguageModel, LoggedSchema, Replay, UsageLog
from localllm.gateway.models.usage import unpack_ids
from localllm.gateway.providers import local
from localllm.inference import model_file
from localllm.inference.engine.replay import Progress, Recording, Replayed, replay, spelled
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import InferenceError
from localllm.inference.types import ChatRequest, ResponseFormat, SamplingParams


async def run(job: Job) -> None:
    """The kind `replay`. It is short enough to begin anew after a restart. Raises InferenceError."""
    row = await database.read(Replay.objects.select_related("generation").get, job=job)
    row.job = job
    recording = await _recording(row.generation)
    async with aclosing(replay(recording)) as steps:
        async for step in steps:
            if isinstance(step, Progress):
                if not await database.store(row.advance, step.num_tokens):
                    return
            else:
                await database.store(row.complete, step, await database.read(_notes, row.generation, step))


async def texts(generation: UsageLog) -> tuple[str, str]:
    """Prompt and output as the model saw them, control tokens spelled out. Raises InferenceError."""
    path = await _file(generation)
    ids = (unpack_ids(bytes(packed)) for packed in (generation.prompt_ids, generation.output_ids))
    prompt, output = await spelled(path, *ids)
    return prompt, output


async def _recording(generation: UsageLog) -> Recording:
    prompt_ids, output_ids = unpack_ids(bytes(generation.prompt_ids)), unpack_ids(bytes(generation.output_ids))
    if generation.provider != local.name:
        raise InferenceError(
            f"This was answered by {generation.provider}, which runs elsewhere. Only generations of "
            f"{local.name} can be replayed."
        )
    if not prompt_ids or not output_ids:
        raise InferenceError("No token was generated, so there is nothing to compare. Replay one that has an output.")
    path = await _file(generation)
    return Recording(
        path=str(path),
        settings=await local.placed(path, _settings(generation)),
        request=await database.read(_request, generation),
        prompt_ids=prompt_ids,
        output_ids=output_ids,
        is_cut=generation.is_cut,
    )


async def _file(generation: UsageLog) -> Path:
    """The file with the very bytes that answered. Its hash is computed: a name proves nothing."""
    wanted = generation.model_sha256
    candidates = await database.read(_paths, generation)
    for path in candidates:
        if path.is_file() and await asyncio.to_thread(model_file.sha256, path) == wanted:
            return path
    name = f"“{generation.model_name}” (SHA-256 {wanted[:12]}…)"
    if here := next((path for path in candidates if path.is_file()), None):
        raise InferenceError(
            f"The file {here} is another one now than {name}, which wrote this. Put that version back to replay it."
        )
    raise InferenceError(f"The model file of {name}, which wrote this, is gone. Download or register it again.")


def _paths(generation: UsageLog) -> list[Path]:
    """Where the file may lie: under its hash, then where its model is now."""
    sources: tuple[QuerySet[LanguageModel] | QuerySet[FileVersion], ...] = (
        LanguageModel.objects.filter(sha256=generation.model_sha256),
        FileVersion.objects.filter(sha256=generation.model_sha256),
        LanguageModel.objects.filter(usagelog=generation),
    )
    return list(dict.fromkeys(Path(row.path) for rows in sources for row in rows))


def _settings(generation: UsageLog) -> EngineSettings:
    """As they were, except that one slot is enough: each has a KV cache of its own."""
    try:
        logged = msgspec.convert(generation.engine_settings, EngineSettings)
    except (msgspec.ValidationError, ValueError) as exc:
        raise InferenceError(f"This version of LocalLLM does not know the engine's settings of then: {exc}.") from exc
    return msgspec.structs.replace(logged, num_slots=1)


def _request(generation: UsageLog) -> ChatRequest:
    logged = generation.parameters
    digest = logged.get("response_format")
    return ChatRequest(
        messages=(),
        params=msgspec.structs.replace(msgspec.convert(logged, SamplingParams), seed=generation.seed),
        prefix=logged.get("prefix", ""),
        reasoning=logged.get("reasoning", ""),
        response_format=_response_format(digest) if digest else None,
    )


def _response_format(digest: str) -> ResponseFormat:
    kept = LoggedSchema.objects.filter(pk=digest).first()
    if kept is None:
        raise InferenceError(
            f"The schema that this was decoded by is not known any more (digest {digest[:12]}…): it was logged before "
            "schemas were kept for replays, or deleted since."
        )
    return kept.response_format


def _notes(generation: UsageLog, result: Replayed) -> list[str]:
    """What limits the comparison; and for a difference, what may have caused it."""
    notes = []
    if num_lost := generation.num_lost:
        notes.append(
            f"Its engine was restarted after {num_lost} tokens, whose ids are lost: what came after was replayed."
        )
    if generation.is_cut:
        notes.append("It was stopped before its end: what had been generated until then was compared.")
    return notes if result.difference is None else [*notes, *_reasons(generation, result)]


def _reasons(generation: UsageLog, result: Replayed) -> list[str]:
    reasons = []
    if generation.engine_build != result.build:
        reasons.append(f"The engine is another one: {generation.engine_build or 'unknown'} then, {result.build} now.")
    if generation.machine != MACHINE:
        reasons.append(f"The CPU is another one: {generation.machine or 'unknown'} then, {MACHINE} now.")
    if generation.reused_tokens:
        reasons.append(
            f"{generation.reused_tokens} of its {generation.prompt_tokens} prompt tokens came from the cache, where "
            "other batches had left them. Their numbers then differ in the last digits, which can tip a close choice."
        )
    if generation.had_neighbours():
        reasons.append(
            "Other generations shared its batches. The numbers then differ in the last digits, which can tip a close "
            "choice."
        )
    return reasons or [
        "Nothing is known that explains it: same file, engine, CPU and settings. The record may have been changed."
    ]
