"""Runs a trial: each logged prompt is asked again as the version tried asks it, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from localllm.gateway import completions, database
from localllm.gateway.models import Job, Trial, TrialAnswer
from localllm.inference.errors import InferenceError, ProviderError, QueueFull
from localllm.inference.types import Chunk, Event, Finished, Usage


async def run(job: Job) -> None:
    """Cancel it at any time: the answer under way is asked for again."""
    trials = Trial.objects.select_related("job__owner", "version")
    trial = await database.read(trials.get, pk=job.pk)
    while (answer := await database.read(trial.next_waiting)) is not None:
        try:
            text, usage = await _ask(trial, answer)
        except InferenceError as exc:
            await database.store(answer.fail, str(exc))
        else:
            await database.store(answer.succeed, text, usage)


async def _ask(trial: Trial, answer: TrialAnswer) -> tuple[str, Usage]:
    request = answer.request(trial.version)
    row = answer.usage
    if row is None or row.model is None:
        raise ProviderError("The model that answered was removed, so it cannot be asked again.", permanent=True)
    asker = completions.Asker(
        source="trial",
        user=trial.job.owner,
        template_version_id=trial.version.pk,
        template_variables=row.template_variables,
    )
    while True:
        try:
            return await _collect(completions.stream(request, row.model, asker))
        except QueueFull as exc:  # users come first
            await asyncio.sleep(exc.retry_after_s)


async def _collect(stream: AsyncGenerator[Event]) -> tuple[str, Usage]:
    text = ""
    async with aclosing(stream) as events:
        async for event in events:
            if isinstance(event, Chunk):
                text += event.text
            elif isinstance(event, Finished):
                return text, event.usage
    raise AssertionError("A stream ended without Finished.")
