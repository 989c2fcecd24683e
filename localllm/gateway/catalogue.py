"""Models worth trying, as data/catalogue.yaml lists them, beside this machine.

Knows names, licences and shapes; sizes are estimates until the hub is asked, and hashes are the hub's alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, get_args

import msgspec
import yaml
from django.utils.text import slugify

from localllm.inference.engine.gguf import Header
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.memory import Fit, Machine, Verdict, fit
from localllm.inference.shapes import Quantisation, Shape

DATA = Path(__file__).parent / "data/catalogue.yaml"
QUANTISATIONS: tuple[Quantisation, ...] = get_args(Quantisation)
USUAL: Quantisation = "Q4_K_M"
QUICK_BYTES = 10**9  # a file that is read for each token without a wait worth mentioning
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)  # the best first
COMMERCIAL_USES = ("yes", "limited", "no")  # the best first
COMFORT = 0.8  # of the free memory: what is recommended leaves some for everything else
READING_PACE = 5.0  # tokens a second: what writes slower than it is read tries everybody's patience


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
    def slug(self) -> str:
        return slugify(self.name.replace(".", "-"))

    @property
    def worthwhile(self) -> tuple[Quantisation, ...]:
        """The best first. More bits than the usual are worth their time in small models only, which need them most."""
        upwards = QUANTISATIONS.index(USUAL)
        finer = [each for each in QUANTISATIONS[upwards + 1 :] if self.sizes[each] <= QUICK_BYTES]
        return (*reversed(finer), *reversed(QUANTISATIONS[: upwards + 1]))

    def best(
        self,
        machine: Machine,
        settings: EngineSettings,
        *,
        loaded_bytes: int = 0,
        among: Iterable[str] = QUANTISATIONS,
    ) -> tuple[Quantisation, Fit] | None:
        """What to get on this machine: the best that fits, or else comes closest. None where `among` has none."""
        closest: tuple[Quantisation, Fit] | None = None
        for quantisation in (each for each in self.worthwhile if each in among):
            found = self.fit(machine, settings, quantisation, loaded_bytes=loaded_bytes)
            if found.verdict == "fits":
                return quantisation, found
            if closest is None or VERDICTS.index(found.verdict) < VERDICTS.index(closest[1].verdict):
                closest = quantisation, found
        return closest

    @property
    def num_parameters(self) -> int:
        return self.header().num_parameters

    def fit(
        self, machine: Machine, settings: EngineSettings, quantisation: Quantisation = USUAL, *, loaded_bytes: int = 0
    ) -> Fit:
        return fit(self.header(quantisation), settings, machine, loaded_bytes=loaded_bytes)


@dataclass(frozen=True, slots=True)
class Choice:
    """An entry beside a machine: the quantisation to get there, and whether it fits."""

    entry: Entry
    quantisation: Quantisation
    fit: Fit
    is_recommended: bool

    @property
    def size_bytes(self) -> int:
        return self.entry.sizes[self.quantisation]


@cache
def entries() -> tuple[Entry, ...]:
    """All models, as the file has them. Raises msgspec.ValidationError when it is wrong."""
    return msgspec.convert(yaml.safe_load(DATA.read_text()), tuple[Entry, ...])


def named(slug: str) -> Entry | None:
    return next((entry for entry in entries() if entry.slug == slug), None)


def of_repository(name: str) -> Entry | None:
    return next((entry for entry in entries() if entry.repository == name), None)


def choices(machine: Machine, settings: EngineSettings, *, loaded_bytes: int = 0) -> list[Choice]:
    """All entries, the recommended one first."""
    fits = {entry: entry.fit(machine, settings, loaded_bytes=loaded_bytes) for entry in entries()}
    first = recommended(fits)
    bests = {entry: entry.best(machine, settings, loaded_bytes=loaded_bytes) for entry in fits}
    found = [Choice(entry, *best, entry is first) for entry, best in bests.items() if best]
    return sorted(found, key=lambda choice: not choice.is_recommended)


def recommended(fits: dict[Entry, Fit]) -> Entry | None:
    """The largest that fits and writes comfortably, among those whose licence allows most; None where nothing does."""
    return min(
        (entry for entry, found in fits.items() if _is_comfortable(found)),
        key=lambda entry: (COMMERCIAL_USES.index(entry.commercial_use), -entry.num_parameters),
        default=None,
    )


def _is_comfortable(found: Fit) -> bool:
    has_room = found.verdict == "fits" and found.need.used_bytes <= found.room_bytes * COMFORT
    return has_room and (found.tokens_per_s is None or found.tokens_per_s >= READING_PACE)
