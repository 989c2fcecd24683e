"""Runs the jobs of the database as tasks of the server. What each kind does is a function given at the start.

Pausing, resuming and cancelling are verbs of the row; `wake` tells the runner to look. It also looks by
itself now and then, for what another process wrote.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from uuid import UUID

from django.db import OperationalError

from localllm.gateway import database
from localllm.gateway.models import Job
from localllm.inference.errors import InferenceError

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0

Kind = Callable[[Job], Awaitable[None]]


class JobRunner:
    """Runs each queued job to its end, or until its row says otherwise."""

    def __init__(self, look_every_s: float = LOOK_EVERY_S) -> None:
        self._look_every_s = look_every_s
        self._kinds: Mapping[str, Kind] = {}
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looking: asyncio.Task[None] | None = None

    async def start(self, kinds: Mapping[str, Kind]) -> None:
        """Begin with what a process that died was running. A kind raises InferenceError to fail with a reason.

        A kind is cancelled when its job is paused, when it is cancelled, and when the server stops: it
        commits what it has done as it goes, and goes on from there when it is called again.
        """
        self._kinds, self._loop = kinds, asyncio.get_running_loop()
        await database.write(Job.objects.requeue_interrupted)
        self._looking = asyncio.create_task(self._look(), name="jobs")

    def wake(self) -> None:
        """A row was made or changed. From any thread; nothing happens where no jobs are run."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._changed.set)

    async def drain(self, seconds: float) -> None:
        """At shutdown: stop. The rows stay `running`, and so they go on at the next start."""
        tasks = [task for task in (self._looking, *self._tasks.values()) if task]
        self._loop = self._looking = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    async def _look(self) -> None:
        while True:
            self._changed.clear()
            try:
                await self._stop_unwanted()
                await self._begin_queued()
            except OperationalError as exc:
                log.error("Jobs cannot be read, trying again in %.0f s: %s", self._look_every_s, exc)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._look_every_s):
                    await self._changed.wait()

    async def _stop_unwanted(self) -> None:
        """End the tasks whose rows were paused, cancelled, deleted, or queued again."""
        running = Job.objects.filter(pk__in=list(self._tasks), state="running").values_list("pk", flat=True)
        wanted = await database.read(set, running)
        unwanted = [task for id, task in self._tasks.items() if id not in wanted]
        for task in unwanted:
            task.cancel()
        if unwanted:
            await asyncio.wait(unwanted)

    async def _begin_queued(self) -> None:
        while (job := await database.write(Job.objects.claim_next, list(self._kinds))) is not None:
            task = self._tasks[job.pk] = asyncio.create_task(self._run(job), name=f"job {job.pk}")
            task.add_done_callback(partial(self._forget, job.pk))

    def _forget(self, id: UUID, task: asyncio.Task[None]) -> None:
        del self._tasks[id]
        self.wake()

    async def _run(self, job: Job) -> None:
        error = ""
        try:
            await self._kinds[job.kind](job)
        except InferenceError as exc:
            error = str(exc)
        except Exception:
            log.exception("Job %s failed.", job.pk)
            error = "Something went wrong here. The log says what."
        await database.store(job.finish, error)


runner = JobRunner()
