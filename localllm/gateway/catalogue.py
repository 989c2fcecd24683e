"""Models worth trying, as data/catalogue.yaml lists them, beside this machine.

Knows names, licences and shapes; sizes are estimates until the hub is asked, and hashes are the hub's alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, get_args

import msgspec
import yaml

from localllm.inference.engine.gguf import Header
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.memory import Fit, Machine, fit
from localllm.inference.shapes import Quantisation, Shape

DATA = Path(__file__).parent / "data/catalogue.yaml"
QUANTISATIONS: tuple[Quantisation, ...] = get_args(Quantisation)
USUAL: Quantisation = "Q4_K_M"
COMMERCIAL_USES = ("yes", "limited", "no")  # the best first
COMFORT = 0.8  # of the free memory: what is recommended leaves some for everything else


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """One model; `because` says in a word why commercial use is limited or not allowed."""

    name: str
    repository: str  # of GGUF files, at the hub
    licence: str
    commercial_use: Literal["yes", "limited", "no"]
    because: str = ""
    context_length: int  # that it was trained on
    quality: str
    purpose: str
    shape: Shape

    def __post_init__(self) -> None:
        if (self.commercial_use == "yes") == bool(self.because):
            raise ValueError(f"{self.name}: give the reason where commercial use is limited, and only there")

    def header(self, quantisation: Quantisation = USUAL) -> Header:
        return self.shape.header(self.name, quantisation, self.context_length)

    @cached_property
    def sizes(self) -> dict[Quantisation, int]:
        """Estimated bytes of the file for each quantisation."""
        return {quantisation: self.header(quantisation).size_bytes for quantisation in QUANTISATIONS}

    @property
    def num_parameters(self) -> int:
        return self.header().num_parameters

    def fit(self, machine: Machine, settings: EngineSettings, *, loaded_bytes: int = 0) -> Fit:
        """In the usual quantisation."""
        return fit(self.header(), settings, machine, loaded_bytes=loaded_bytes)


@dataclass(frozen=True, slots=True)
class Choice:
    """An entry beside a machine."""

    entry: Entry
    fit: Fit
    is_recommended: bool


@cache
def entries() -> tuple[Entry, ...]:
    """All models, as the file has them. Raises msgspec.ValidationError when it is wrong."""
    return msgspec.convert(yaml.safe_load(DATA.read_text()), tuple[Entry, ...])


def choices(machine: Machine, settings: EngineSettings, *, loaded_bytes: int = 0) -> list[Choice]:
    fits = {entry: entry.fit(machine, settings, loaded_bytes=loaded_bytes) for entry in entries()}
    best = recommended(fits)
    return [Choice(entry, found, entry is best) for entry, found in fits.items()]


def recommended(fits: dict[Entry, Fit]) -> Entry | None:
    """The largest that fits comfortably, among those whose licence allows most; None where nothing does."""
    comfortable = [
        entry
        for entry, found in fits.items()
        if found.verdict == "fits" and found.need.used_bytes <= found.room_bytes * COMFORT
    ]
    return min(
        comfortable,
        key=lambda entry: (COMMERCIAL_USES.index(entry.commercial_use), -entry.num_parameters),
        default=None,
    )
