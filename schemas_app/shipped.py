"""The schemas that come with the program, as data/*.json holds them. A migration adds them once: what an admin
edits or deletes afterwards stays so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).parent / "data"


class Shipped(NamedTuple):
    slug: str
    name: str
    description: str
    prompt_template: str
    text: str


def shipped() -> Iterator[Shipped]:
    for path in sorted(DATA.glob("*.json")):
        said = json.loads(path.read_text(encoding="utf-8"))
        text = json.dumps(said["schema"], indent=2, ensure_ascii=False)
        yield Shipped(path.stem.replace("_", "-"), said["name"], said["description"], said["prompt_template"], text)
