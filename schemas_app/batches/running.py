"""Runs a batch: every slot of the model is kept busy, and each result is committed at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from weakref import WeakValueDictionary

from localllm.gateway import database, structured
from localllm.gateway.completions import Asker
from localllm.gateway.models import Job, LanguageModel
from localllm.inference.errors import ContextOverflow, InferenceError, NoRoom, ProviderError, QueueFull
from localllm.inference.json_schema.grammar import CompiledSchema
from localllm.inference.structured import StructuredError, StructuredResult
from localllm.inference.types import Message
from schemas_app.batches.models import Batch, BatchRow
from schemas_app.models import SchemaVersion

MAX_UNANSWERED = 5  # rows in a row; then it is not the rows

# Rows in flight per slot: one is answered, and one waits in the engine's line, where any other owner's request
# goes before it. So no slot stands idle while a result is committed, and nobody waits longer than for one row.
IN_FLIGHT = 2

# All batches of a model share these and take turns, so that they never fill the engine's queue.
_turns: WeakValueDictionary[tuple[int, int], asyncio.Semaphore] = WeakValueDictionary()


async def run(job: Job) -> None:
    """Answer the rows that wait. Cancel it at any time: the rows in flight wait again."""
    batch = await database.read(Batch.objects.for_running, job.pk)
    version, model = batch.schema_version, batch.model
    if version is None:
        raise InferenceError("The schema of this batch was deleted. Start a new batch with another schema.")
    if model is None:
        raise InferenceError("The model of this batch was removed. Start a new batch with another model.")
    compiled = await structured.compiler.compile(version.text)
    await _Extraction(batch, version, model, compiled).run()


class _Extraction:
    def __init__(self, batch: Batch, version: SchemaVersion, model: LanguageModel, compiled: CompiledSchema) -> None:
        self._batch = batch
        self._version = version
        self._model = model
        self._compiled = compiled
        self._asker = Asker(source="batch", user=batch.job.owner, schema_version_id=version.pk)
        self._unanswered: list[str] = []  # what the last rows in a row got instead of an answer

    async def run(self) -> None:
        num_turns = IN_FLIGHT * self._model.num_slots
        turns = _turns.setdefault((self._model.pk, num_turns), asyncio.Semaphore(num_turns))
        async with asyncio.TaskGroup() as tasks, aclosing(self._waiting()) as rows:
            async for row in rows:
                await turns.acquire()
                tasks.create_task(self._answer(row)).add_done_callback(lambda _: turns.release())
        if self._is_stuck:
            raise InferenceError(
                f"{MAX_UNANSWERED} rows in a row got no answer, so the batch was stopped. The last one was told: "
                f"{self._unanswered[-1]} Resume the batch when that is mended."
            )

    @property
    def _is_stuck(self) -> bool:
        return len(self._unanswered) >= MAX_UNANSWERED

    async def _waiting(self) -> AsyncGenerator[BatchRow]:
        number = 0
        while rows := await database.read(self._batch.waiting_after, number):
            for row in rows:
                if self._is_stuck:
                    return
                yield row
                number = row.number

    async def _answer(self, row: BatchRow) -> None:
        try:
            result = await self._ask(row.input)
        except StructuredError as exc:
            await database.store(row.fail, exc.kind, str(exc))
        except ContextOverflow as exc:
            await database.store(row.fail, "too_long", str(exc))
        except ProviderError as exc:
            self._unanswered.append(str(exc))
            await database.store(row.fail, "no_answer", str(exc))
        else:
            self._unanswered.clear()
            await database.store(row.succeed, result)

    async def _ask(self, text: str) -> StructuredResult:
        request = self._version.question(
            self._model, Message("user", text), owner=f"batch:{self._batch.pk}", num_logprobs=None
        )
        while True:
            items = structured.stream(
                request, self._compiled, self._model, self._asker, about=self._version.schema.description
            )
            try:
                async with aclosing(items):
                    async for item in items:
                        if isinstance(item, StructuredResult):
                            return item
            except (QueueFull, NoRoom) as exc:  # others came first; no fault of the row
                await asyncio.sleep(exc.retry_after_s)
