"""Models beside this machine as it is now: its memory, and what loaded models hold of it already."""

from __future__ import annotations

from collections.abc import Iterable

from localllm.gateway import catalogue
from localllm.gateway.catalogue import Choice, Entry
from localllm.gateway.providers import local
from localllm.inference import memory
from localllm.inference.engine.gguf import Header
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.memory import Fit
from localllm.inference.shapes import Quantisation


def fit(header: Header, settings: EngineSettings) -> Fit:
    return memory.fit(header, settings, local.machine(), loaded_bytes=local.held_bytes)


def window(header: Header, settings: EngineSettings) -> int:
    """The context window of `settings`, or the largest for which this machine has room."""
    found = fit(header, settings)
    return found.max_window if found.verdict == "smaller context" else settings.n_ctx


def choices() -> list[Choice]:
    """The catalogue, as a model would be loaded by default."""
    return catalogue.choices(local.machine(), EngineSettings(), loaded_bytes=local.held_bytes)


def best(entry: Entry, among: Iterable[str]) -> Quantisation | None:
    found = entry.best(local.machine(), EngineSettings(), loaded_bytes=local.held_bytes, among=among)
    return found[0] if found else None
