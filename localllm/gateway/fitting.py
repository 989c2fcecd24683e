"""Models beside this machine as it is now: its memory, and what loaded models hold of it already."""

from __future__ import annotations

from collections.abc import Iterable

from localllm.gateway import catalogue, serving
from localllm.gateway.catalogue import Choice, Entry
from localllm.inference import memory
from localllm.inference.engine.gguf import Header
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.memory import Fit
from localllm.inference.shapes import Quantisation


def fit(header: Header, settings: EngineSettings) -> Fit:
    return memory.fit(header, settings, serving.machine(), loaded_bytes=serving.memory().held_bytes)


def choices() -> list[Choice]:
    """The catalogue, as a model would be loaded by default."""
    return catalogue.choices(serving.machine(), EngineSettings(), loaded_bytes=serving.memory().held_bytes)


def best(entry: Entry, among: Iterable[str]) -> Quantisation | None:
    found = entry.best(serving.machine(), EngineSettings(), loaded_bytes=serving.memory().held_bytes, among=among)
    return found[0] if found else None
