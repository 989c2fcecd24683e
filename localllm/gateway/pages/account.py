"""What a model takes of this machine's memory, piece by piece, as a bar and a table show it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from localllm.gateway import serving
from localllm.gateway.models import LanguageModel
from localllm.inference import memory
from localllm.inference.engine.gguf import Header, read_header
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.memory import WINDOW_STEP, Fit

LONGEST = 1 << 17  # window of the slider, for a model that does not say what it was trained on


@dataclass(frozen=True, slots=True)
class Piece:
    """Of the bar: where it starts and how long it is, in hundredths."""

    name: str
    start: float
    length: float


@dataclass(frozen=True, slots=True)
class Account:
    """What a file takes of the memory of this machine, loaded with these settings."""

    header: Header
    settings: EngineSettings
    fit: Fit
    loaded_bytes: int  # by other models

    @property
    def longest(self) -> int:
        return self.header.context_length or LONGEST

    @property
    def shortest(self) -> int:
        return min(WINDOW_STEP, self.longest)

    @property
    def free_bytes(self) -> int:
        """Below zero: so much is missing."""
        return self.fit.room_bytes - self.fit.need.used_bytes

    @property
    def limit(self) -> float:
        """Where on the bar models may take no more."""
        return self._share(self.loaded_bytes + self.fit.room_bytes)

    def pieces(self) -> list[Piece]:
        need = self.fit.need
        parts = (
            ("loaded", self.loaded_bytes),
            ("weights", need.weights_bytes),
            ("kv", need.kv_bytes),
            ("compute", need.compute_bytes),
            ("process", need.process_bytes),
        )
        return bar(parts, self._whole_bytes)

    @property
    def _whole_bytes(self) -> int:
        return self.loaded_bytes + max(self.fit.room_bytes, self.fit.need.used_bytes)

    def _share(self, num_bytes: int) -> float:
        return _hundredths(num_bytes, self._whole_bytes)


def bar(parts: Iterable[tuple[str, int]], whole_bytes: int) -> list[Piece]:
    """Pieces of these names and sizes, one after the other."""
    pieces, end = [], 0
    for name, num_bytes in parts:
        pieces.append(Piece(name, _hundredths(end, whole_bytes), _hundredths(num_bytes, whole_bytes)))
        end += num_bytes
    return pieces


def account_of(model: LanguageModel, settings: EngineSettings) -> Account:
    """Of an installed model with other settings, as if its own worker had ended. Raises ModelRefused."""
    header, own, machine = header_of(model), serving.state(model), serving.machine()
    own_bytes = own.needed_bytes if own.is_loaded else 0
    others_bytes = max(0, serving.memory().held_bytes - own_bytes)
    free = replace(machine, available_bytes=machine.available_bytes + own_bytes)
    return Account(header, settings, memory.fit(header, settings, free, loaded_bytes=others_bytes), others_bytes)


def header_of(model: LanguageModel) -> Header:
    """What its file says of itself. Raises ModelRefused."""
    return _header(Path(model.path), model.sha256)


@lru_cache(maxsize=32)
def _header(path: Path, sha256: str) -> Header:
    return read_header(path)


def _hundredths(num_bytes: int, whole_bytes: int) -> float:
    return round(100 * num_bytes / whole_bytes, 2) if whole_bytes else 0.0
