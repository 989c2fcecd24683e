"""The embedded provider: GGUF files, each served by a worker process of its own.

Loads a model when it is first asked for, all models together within one budget of memory: the one that is idle for
longest makes room, one that is answering never. It knows files and settings; it knows nothing of rows.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

from localllm.inference.amounts import size
from localllm.inference.engine.devices import gpu_bytes
from localllm.inference.engine.gguf import read_header
from localllm.inference.engine.host import EngineHost
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import EngineDied, InferenceError, ModelRefused, NoRoom, ProviderError
from localllm.inference.memory import (
    SHARE,
    Machine,
    Need,
    account,
    peak_resident_bytes,
    resident_bytes,
    this_machine,
)
from localllm.inference.types import ChatRequest, Embedding, Event, Loading, Message, ModelInfo

State = Literal["stopped", "waiting", "loading", "ready", "restarting", "ending", "refused"]

RETRY_AFTER_S = 10.0  # when the memory is held by models that are answering


MAX_DEATHS = 3  # of the engine under the same texts; more, and they are likely the cause


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A file as it is to be loaded. Another file or other settings make another worker.

    Workers of one `name` take turns: when a newer one is ready, the older ones end with their last reply.
    """

    path: Path
    settings: EngineSettings
    digest: str = ""
    name: str = field(default="", compare=False)
    keep_alive_s: float = field(default=0.0, compare=False)  # without a request; 0: it stays
    measured_bytes: int | None = field(default=None, compare=False)  # the peak of a worker like this one

    @property
    def label(self) -> str:
        return self.name or self.path.stem


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How a model is being served at this moment.

    `waiting` is for memory that a worker on its way out still holds; `ending` has running replies to finish.
    """

    state: State = "stopped"
    fraction: float = 0.0  # of loading
    error: str = ""
    num_requests: int = 0
    num_waiting: int = 0  # of them, for a slot
    needed_bytes: int = 0  # of the budget
    resident_bytes: int = 0
    window: int = 0  # tokens of one conversation
    num_slots: int = 0
    num_threads: int = 0
    build: str = ""  # of llama.cpp
    pid: int | None = None
    loaded_since: datetime | None = None
    last_used: datetime | None = None

    @property
    def is_loaded(self) -> bool:
        return self.state not in ("stopped", "waiting", "refused")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """What loading a model showed. Speeds are tokens per second of one conversation."""

    predicted_bytes: int
    measured_bytes: int  # the peak, resident, after a full batch
    load_s: float
    prefill_per_s: float
    decode_per_s: float


@dataclass(eq=False, slots=True)
class _Worker:
    """A model that is loaded or on its way, and who uses it."""

    model: LocalModel
    host: EngineHost
    started: asyncio.Future[None]  # its process has been started; or why it will not be
    need: Need | None = None
    is_admitted: bool = False  # its need is counted
    is_retired: bool = False  # it ends with its last reply
    num_users: int = 0
    num_requests: int = 0  # of the users; the others wait for it to be loaded
    last_used_at: float = field(default_factory=time.time)
    loading: asyncio.Task[None] | None = None
    keep_alive: asyncio.TimerHandle | None = None

    @property
    def is_busy(self) -> bool:
        return self.num_users > 0

    @property
    def needed_bytes(self) -> int:
        """As the header tells it, or as it was measured."""
        if self.need is None:
            return 0
        if not self.model.measured_bytes:
            return self.need.used_bytes
        # The peak holds originals of repacked weights that the kernel drops when memory is wanted.
        return self.model.measured_bytes - (self.need.peak_bytes - self.need.used_bytes)

    @property
    def held_bytes(self) -> int:
        return self.needed_bytes if self.is_admitted and self.host.state != "refused" else 0

    @property
    def state(self) -> State:
        if self.host.state == "stopped":
            return "waiting"
        return "ending" if self.is_retired and self.host.state == "ready" else self.host.state


class LlamaCpp:
    name = "llama.cpp"

    def __init__(self, *, share: float = SHARE, memory_bytes: int | None = None) -> None:
        """All models together take `memory_bytes`, or else `share` of the machine's memory."""
        self._share = share
        self._memory_bytes = memory_bytes
        self._gpu_bytes: int | None = None  # when it was last asked for
        self._workers: dict[LocalModel, _Worker] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()  # somebody ended or is idle: there may be room

    async def stream(self, model: LocalModel, request: ChatRequest) -> AsyncGenerator[Event]:
        with self._using(model) as worker:
            if not worker.started.done():
                yield Loading(0.0)
                await asyncio.shield(worker.started)
            async with aclosing(worker.host.stream(request)) as events:
                async for event in events:
                    yield event

    async def count(self, model: LocalModel, messages: tuple[Message, ...]) -> int:
        with self._asking(model) as worker:
            await asyncio.shield(worker.started)
            return await worker.host.count(messages)

    async def count_texts(self, model: LocalModel, texts: Sequence[str]) -> list[int]:
        """Exact number of tokens of each text by itself."""
        with self._asking(model) as worker:
            await asyncio.shield(worker.started)
            return await worker.host.count_texts(texts)

    async def info(self, model: LocalModel) -> ModelInfo:
        """What the model turned out to be; loads it if need be."""
        with self._asking(model) as worker:
            await asyncio.shield(worker.started)
            return await worker.host.wait_until_ready()

    async def loading(self, model: LocalModel) -> AsyncGenerator[Loading]:
        """How far loading is, until the model is ready; nothing if it is."""
        with self._using(model) as worker:
            if not worker.started.done():
                yield Loading(0.0)
                await asyncio.shield(worker.started)
            async for event in worker.host.loading():
                yield event

    async def preview(self, model: LocalModel, messages: tuple[Message, ...]) -> tuple[str, int]:
        """What the model would see of these messages, and how many tokens that is."""
        with self._asking(model) as worker:
            await asyncio.shield(worker.started)
            return await worker.host.preview(messages)

    async def embed(self, model: LocalModel, texts: Sequence[str]) -> list[Embedding]:
        """A vector of length 1 for each text, in their order; made anew when the engine dies under it.

        Raises ProviderError; ContextOverflow for a text that is too long, of which nothing is cut.
        """
        num_deaths = 0
        while True:
            try:
                with self._using(model) as worker:
                    await asyncio.shield(worker.started)
                    return await worker.host.embed(texts)
            except EngineDied:
                num_deaths += 1
                if num_deaths == MAX_DEATHS:
                    raise

    async def load(self, model: LocalModel) -> None:
        """Load it, and wait until it is ready. Raises NoRoom, and ProviderError when it will not load."""
        with self._using(model, is_request=False) as worker:
            await asyncio.shield(worker.started)
            await worker.host.wait_until_ready()

    async def unload(self, model: LocalModel) -> None:
        """End its workers: at once when they are idle, else with their last reply."""
        await self._retire(self._named(model.label))

    def rename(self, old: str, new: str) -> None:
        """Its workers are found by the new name from now on."""
        for worker in self._named(old):
            worker.model = dataclasses.replace(worker.model, name=new)

    async def retire_older(self, model: LocalModel) -> None:
        """End workers with another file or other settings of the same model, likewise."""
        if worker := self._workers.get(model):
            await self._retire(self._others(worker))

    async def cancel_load(self, model: LocalModel) -> bool:
        """End a worker that is not ready yet. Requests that wait for it get a sentence."""
        worker = self._workers.get(model)
        if worker is None or worker.state not in ("waiting", "loading", "restarting"):
            return False
        await self._end(worker, f"Loading {model.label} was cancelled. Ask again to load it.")
        return True

    async def measure(self, model: LocalModel) -> Measurements:
        """Wait until it is loaded and idle, and measure it. A request that comes meanwhile goes first."""
        await self.load(model)
        worker = self._workers.get(model)
        if worker is None or worker.need is None:
            raise EngineDied(f"{model.label} was unloaded before it was measured.")
        speed = await worker.host.measure()
        return Measurements(
            predicted_bytes=worker.need.peak_bytes,
            measured_bytes=peak_resident_bytes(worker.host.pid) if worker.host.pid else 0,
            load_s=worker.host.load_s,
            prefill_per_s=speed.prefill_per_s,
            decode_per_s=speed.decode_per_s,
        )

    async def look_for_gpu(self) -> None:
        """Ask what graphics memory is free now; `machine` has it from then on."""
        self._gpu_bytes = await asyncio.to_thread(gpu_bytes, self._share)

    async def placed(self, path: Path, settings: EngineSettings) -> EngineSettings:
        """`settings` as they would be used now: with the layers that have room on the GPU. Raises ModelRefused."""
        return (await self._need(path, settings)).settings

    async def aclose(self) -> None:
        await asyncio.gather(*map(self._end, list(self._workers.values())), *self._ending)

    # From any thread: copies of what the event loop's own thread writes

    def loaded(self, model: LocalModel) -> EngineHost | None:
        worker = self._workers.get(model)
        return worker.host if worker else None

    def state(self, model: LocalModel) -> Serving:
        worker = self._workers.get(model)
        if worker is None:
            return Serving()
        host = worker.host
        num_slots = host.info.num_slots if host.info else 0
        return Serving(
            state=worker.state,
            fraction=host.fraction,
            error=host.error,
            num_requests=worker.num_requests,
            num_waiting=max(0, worker.num_requests - num_slots),
            needed_bytes=worker.needed_bytes,
            resident_bytes=resident_bytes(host.pid) if host.pid else 0,
            window=host.info.window if host.info else 0,
            num_slots=num_slots,
            num_threads=host.info.num_threads if host.info else 0,
            build=host.info.build if host.info else "",
            pid=host.pid,
            loaded_since=datetime.fromtimestamp(host.ready_at, UTC) if host.ready_at else None,
            last_used=datetime.fromtimestamp(worker.last_used_at, UTC),
        )

    def machine(self) -> Machine:
        return this_machine(share=self._share, gpu_bytes=self._gpu_bytes)

    @cached_property
    def budget_bytes(self) -> int:
        return self._memory_bytes or self.machine().budget_bytes

    @property
    def held_bytes(self) -> int:
        return sum(worker.held_bytes for worker in list(self._workers.values()))

    # The life of a worker

    @contextmanager
    def _using(self, model: LocalModel, *, is_request: bool = True, revives: bool = True) -> Iterator[_Worker]:
        """The worker of `model`, which is kept while the block runs. From the main thread's event loop only.

        With a request it takes over from older workers of the model, which end. One that is on its way out stays,
        if use of it `revives` it.
        """
        worker = self._workers.get(model)
        if worker is None or worker.state == "refused":  # the file may have been mended
            worker = self._begin(model)
        worker.model = model  # its name and keep-alive may be other ones now
        if revives:
            worker.is_retired = worker.is_retired and any(not other.is_retired for other in self._others(worker))
        if is_request and not worker.is_retired:
            self._retire_soon(self._others(worker))
        worker.num_users += 1
        worker.num_requests += is_request
        if worker.keep_alive:
            worker.keep_alive.cancel()
        try:
            yield worker
        except ModelRefused as exc:
            raise ProviderError(str(exc), permanent=True) from exc
        finally:
            worker.num_users -= 1
            worker.num_requests -= is_request
            worker.last_used_at = time.time()
            if not worker.is_busy:
                self._rest(worker)

    def _asking(self, model: LocalModel) -> AbstractContextManager[_Worker]:
        """To ask about a text is no reason to keep a model that is to go."""
        return self._using(model, is_request=False, revives=False)

    def _begin(self, model: LocalModel) -> _Worker:
        loop = asyncio.get_running_loop()
        worker = self._workers[model] = _Worker(model, EngineHost(model.path, model.settings), loop.create_future())
        worker.loading = loop.create_task(self._load(worker), name=f"load {model.label}")
        return worker

    async def _load(self, worker: _Worker) -> None:
        """Find room and start the process."""
        try:
            path = worker.model.path
            if not await asyncio.to_thread(path.is_file):
                raise ModelRefused(f"The file of this model is gone: {path}. Put it back, or choose another model.")
            worker.need = await self._need(path, worker.model.settings)
            while (idle := self._admit(worker)) is None:
                await self._changed.wait()
            await asyncio.gather(*map(self._end, idle))
            worker.host.settings = worker.need.settings
            worker.host.start()
        except NoRoom as exc:
            self._forget(worker)
            worker.started.set_exception(exc)
            worker.started.exception()  # whoever waited for it may be gone
        except (InferenceError, OSError) as exc:
            worker.host.refuse(str(exc))
        finally:
            if not worker.started.done():
                worker.started.set_result(None)

    async def _need(self, path: Path, settings: EngineSettings) -> Need:
        await self.look_for_gpu()
        header = await asyncio.to_thread(read_header, path)
        return await asyncio.to_thread(account, header, settings, self.machine())

    def _admit(self, worker: _Worker) -> list[_Worker] | None:
        """Count what `worker` needs; returns the idle workers that must end for it, None when it has to wait.

        Raises NoRoom. Nothing is awaited between the look and the booking: two models never get the same room.
        """
        assert worker.need is not None
        free = self.budget_bytes - self.held_bytes
        others = [other for other in self._workers.values() if other.held_bytes]
        leaving: list[_Worker] = []
        for other in sorted(others, key=lambda other: other.last_used_at):
            if free < worker.needed_bytes and not other.is_busy:
                leaving.append(other)
                free += other.held_bytes
        is_alone = len(leaving) == len(others)
        # Alone, it may read its weights from disk again and again, if it must.
        if free >= worker.needed_bytes or (is_alone and worker.need.held_bytes <= self.budget_bytes):
            worker.is_admitted = True
            for other in leaving:
                self._forget(other)
            return leaving
        if is_alone:
            raise ProviderError(
                f"{worker.model.label} needs {size(worker.needed_bytes)} of memory, and all models together may "
                f"take {size(self.budget_bytes)}. Give it a smaller context window or fewer slots, choose a "
                "smaller quantisation, or let models take a larger share of the memory.",
                permanent=True,
            )
        if any(other.is_retired for other in others):
            return None
        raise self._no_room(worker, free, [other for other in others if other.is_busy])

    def _no_room(self, worker: _Worker, free: int, holders: list[_Worker]) -> NoRoom:
        held = ", ".join(f"{each.model.label} ({size(each.held_bytes)})" for each in holders)
        return NoRoom(
            f"{worker.model.label} needs {size(worker.needed_bytes)} of memory, and "
            f"{size(max(0, free))} of the {size(self.budget_bytes)} for models can be had: "
            f"{held} {'is' if len(holders) == 1 else 'are'} in use. Try again later, or use another model.",
            retry_after_s=RETRY_AFTER_S,
        )

    def _rest(self, worker: _Worker) -> None:
        """Nobody uses it any more."""
        if worker.is_retired:
            self._end_soon(worker)
        elif worker.model.keep_alive_s:
            loop = asyncio.get_running_loop()
            worker.keep_alive = loop.call_later(worker.model.keep_alive_s, self._end_soon, worker)
        self._wake()

    def _wake(self) -> None:
        """Whoever waits for room may look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _retire(self, workers: list[_Worker]) -> None:
        await asyncio.gather(*self._retire_soon(workers))

    def _retire_soon(self, workers: list[_Worker]) -> list[asyncio.Task[None]]:
        """Let them end with their last reply; returns the ends of those that are idle."""
        for worker in workers:
            worker.is_retired = True
        return [self._end_soon(worker) for worker in workers if not worker.is_busy]

    def _end_soon(self, worker: _Worker) -> asyncio.Task[None]:
        self._forget(worker)
        task = asyncio.get_running_loop().create_task(self._end(worker), name=f"end {worker.model.label}")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _end(self, worker: _Worker, why: str = "") -> None:
        self._forget(worker)
        if worker.keep_alive:
            worker.keep_alive.cancel()
        if worker.loading:
            worker.loading.cancel()
        await worker.host.stop(why)
        if not worker.started.done():
            worker.started.set_result(None)  # `_load` was cancelled before it began
        self._wake()

    def _forget(self, worker: _Worker) -> None:
        if self._workers.get(worker.model) is worker:
            del self._workers[worker.model]

    def _named(self, label: str) -> list[_Worker]:
        return [worker for worker in self._workers.values() if worker.model.label == label]

    def _others(self, worker: _Worker) -> list[_Worker]:
        """Workers of the same model."""
        return [other for other in self._named(worker.model.label) if other is not worker]
