"""Models in memory: what pages and admin may do with them."""

from __future__ import annotations

from dataclasses import dataclass

from localllm.gateway import database
from localllm.gateway.models import LanguageModel
from localllm.gateway.providers import local
from localllm.inference.memory import SHARE, Machine, this_machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How a model is being served at this moment."""

    state: str = "stopped"
    fraction: float = 0.0  # of loading
    error: str = ""
    num_requests: int = 0
    num_waiting: int = 0
    needed_bytes: int = 0
    resident_bytes: int = 0
    window: int = 0
    num_slots: int = 0

    @property
    def is_loaded(self) -> bool:
        return self.state not in ("stopped", "waiting", "refused")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What all models together may take, and what the loaded ones hold of it."""

    budget_bytes: int
    held_bytes: int


def state(model: LanguageModel) -> Serving:
    host = local.loaded(model.local())
    if host is None:
        return Serving()
    return Serving(
        state=host.state,
        fraction=host.fraction,
        error=host.error,
        num_requests=host.num_requests,
        needed_bytes=model.measured_bytes or model.size_bytes,
        window=host.info.window if host.info else 0,
        num_slots=host.info.num_slots if host.info else 0,
    )


def memory() -> Memory:
    loaded = [state(model) for model in LanguageModel.objects.all()]
    held = sum(each.needed_bytes for each in loaded if each.is_loaded)
    return Memory(budget_bytes=int(machine().total_bytes * SHARE), held_bytes=held)


def machine() -> Machine:
    return this_machine()


async def load(model: LanguageModel) -> None:
    await local.host(model.local())


async def unload(model: LanguageModel) -> None:
    await local.unload(model.local())


async def cancel_load(model: LanguageModel) -> bool:
    await local.unload(model.local())
    return True


async def make_default(model: LanguageModel) -> None:
    await local.host(model.local())
    await database.write(model.make_default)


async def change(model: LanguageModel) -> None:
    await database.write(model.save)


async def delete(model: LanguageModel) -> None:
    await database.write(model.delete)
    await unload(model)
