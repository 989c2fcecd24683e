"""Models beside this machine as it is now: its memory, and what loaded models hold of it already."""

from __future__ import annotations

from collections.abc import Iterable

from localllm.gateway import catalogue
from localllm.gateway.catalogue import Choice, Entry
from localllm.gateway.models import LanguageModel
from localllm.gateway.providers import local
from localllm.inference import memory
from localllm.inference.engine.gguf import Header
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.memory import Fit, this_machine
from localllm.inference.shapes import Quantisation


def fit(header: Header, settings: EngineSettings) -> Fit:
    return memory.fit(header, settings, this_machine(), loaded_bytes=loaded_bytes())


def choices() -> list[Choice]:
    """The catalogue, as a model would be loaded by default."""
    return catalogue.choices(this_machine(), EngineSettings(), loaded_bytes=loaded_bytes())


def best(entry: Entry, among: Iterable[str]) -> Quantisation | None:
    found = entry.best(this_machine(), EngineSettings(), loaded_bytes=loaded_bytes(), among=among)
    return found[0] if found else None


def loaded_bytes() -> int:
    """What loaded models hold: as measured, else as told before they were loaded, else as large as their files."""
    models = [model for model in LanguageModel.objects.all() if local.loaded(model.local())]
    return sum(model.measured_bytes or model.predicted_bytes or model.size_bytes for model in models)
