"""Ways to load a model, as data/presets.yaml lists them. Knows no model: whether one fits is told from its header."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import yaml

from localllm.inference.engine.settings import EngineSettings

DATA = Path(__file__).parent / "data/presets.yaml"


class Preset(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    title: str
    purpose: str
    settings: EngineSettings

    @property
    def values(self) -> dict[str, Any]:
        """Every setting by name."""
        values: dict[str, Any] = msgspec.to_builtins(self.settings)
        return values


@cache
def presets() -> tuple[Preset, ...]:
    """All of them, as the file has them. Raises msgspec.ValidationError when it is wrong."""
    return msgspec.convert(yaml.safe_load(DATA.read_text()), tuple[Preset, ...])


def preset(name: str) -> Preset | None:
    return next((each for each in presets() if each.name == name), None)
