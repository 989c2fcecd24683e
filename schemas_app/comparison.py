"""Two versions of a schema side by side. Knows nothing of pages."""

from __future__ import annotations

from dataclasses import dataclass

from localllm.inference.side_by_side import Line, side_by_side
from schemas_app.models import SchemaVersion


@dataclass(frozen=True, slots=True)
class Part:
    """What one thing that a version says was and became."""

    title: str
    lines: tuple[Line, ...]


def compare(before: SchemaVersion, after: SchemaVersion) -> list[Part]:
    """The parts that differ."""
    return [
        Part(title, tuple(side_by_side(old, new)))
        for (title, old), (_, new) in zip(_said(before), _said(after), strict=True)
        if old != new
    ]


def _said(version: SchemaVersion) -> list[tuple[str, str]]:
    settings = f"temperature {version.temperature:g}\nlength limit {version.max_tokens}"
    examples = "\n\n".join(f"{each['input']}\n→ {each['output']}" for each in version.examples)
    return [
        ("JSON Schema", version.text),
        ("Prompt template", version.prompt_template),
        ("Settings", settings),
        ("Examples", examples),
    ]
