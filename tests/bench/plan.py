"""What is measured on, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from localllm.inference.engine.settings import num_available_cpus
from tests.bench import make_model


@dataclass(frozen=True, slots=True)
class Plan:
    shape: str = "0.5b"
    is_quick: bool = False  # one pair of each, to see that it works: no figures to show

    @property
    def model(self) -> Path:
        return make_model.model(self.shape)

    @property
    def num_threads(self) -> int:
        return num_available_cpus()

    @property
    def streams(self) -> tuple[int, ...]:
        return (1, 4) if self.is_quick else (1, 2, 4, 10)

    def pairs(self, count: int) -> int:
        return 1 if self.is_quick else count
