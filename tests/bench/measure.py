"""Figures: taken in alternating pairs, judged by medians, shown with their spread, kept as tables and JSON.

Knows numbers and text; nothing of models or servers.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Literal, TypeVar

from deploy.build_llama import ROOT
from tests.bench.make_model import BUILD

PAGE = ROOT / "docs/benchmarks.md"
SETTLE_S, SETTLE_ROUNDS = 0.5, 20  # longer than the pause before our engine uses idle time
IDLE_SHARE = 0.9
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bound:
    sense: Literal["≥", "≤", "<"]
    limit: float

    def is_met(self, value: float) -> bool:
        if self.sense == "≥":
            return value >= self.limit
        return value <= self.limit if self.sense == "≤" else value < self.limit

    def __str__(self) -> str:
        return f"{self.sense} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """Measurements of one thing, beside a peer's when `theirs` is given; entries of a pair share an index.

    Judged is the median of the pairs' ratios, ours to theirs, or of our own values when there is no peer.
    """

    what: str
    unit: str
    ours: Sequence[float]
    peer: str = ""
    theirs: Sequence[float] = ()
    wanted: Bound | None = None

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)] if self.theirs else []

    @property
    def judged(self) -> float:
        return median(self.ratios or self.ours)

    @property
    def verdict(self) -> str:
        if self.wanted is None:
            return ""
        return f"{self.wanted}: {'met' if self.wanted.is_met(self.judged) else 'MISSED'}"

    def row(self) -> list[str]:
        theirs = f"{self.peer}: {spread(self.theirs)}" if self.theirs else ""
        ratio = spread(self.ratios, digits=3) if self.theirs else ""
        return [self.what, self.unit, spread(self.ours), theirs, ratio, self.verdict]


FIGURE_HEAD = ["what", "unit", "here: median (min to max)", "peer", "ratio of pairs", "wanted"]


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of one benchmark. `commands` are what the peers were started with."""

    figures: Sequence[Figure]
    commands: Sequence[str] = ()
    notes: Sequence[str] = ()
    table: Sequence[Sequence[str]] = field(default=())  # further figures, the head first
    model: str = ""  # where it is not the plan's

    def markdown(self) -> str:
        parts = []
        if self.figures:
            parts.append(table([FIGURE_HEAD, *(figure.row() for figure in self.figures)]))
        if self.table:
            parts.append(table(self.table))
        parts += self.notes
        if self.commands:
            parts.append("\n".join(f"    {command}" for command in self.commands))
        return "\n\n".join(parts)


def table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def spread(values: Sequence[float], digits: int | None = None) -> str:
    """The median, then the least and the greatest: `41.6 (40.9 to 42.0)`."""
    places = digits if digits is not None else 1 if median(values) >= 10 else 2
    middle, least, greatest = (f"{value:.{places}f}" for value in (median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({least} to {greatest})"


async def alternate(rounds: int, *sides: Callable[[int], Awaitable[T]]) -> list[list[T]]:
    """Let each side run once a round, in turns first and last; `sides[i](round)` gives `results[i][round]`.

    None begins before the machine is idle: our engine goes on after an answer with what the next turn begins with.
    """
    results: list[list[T]] = [[] for _ in sides]
    for round in range(rounds):
        order = range(len(sides)) if round % 2 == 0 else reversed(range(len(sides)))
        for i in order:
            await _settle()
            results[i].append(await sides[i](round))
    return results


async def _settle() -> None:
    """Wait until the CPUs do next to nothing, for some seconds at most."""
    for _ in range(SETTLE_ROUNDS):
        idle_before, total_before = _cpu_ticks()
        await asyncio.sleep(SETTLE_S)
        idle, total = _cpu_ticks()
        if idle - idle_before >= IDLE_SHARE * (total - total_before):
            return


def _cpu_ticks() -> tuple[int, int]:
    """How long all CPUs together were idle, and how long they were there."""
    ticks = [int(field) for field in read("/proc/stat").partition("\n")[0].split()[1:9]]
    return sum(ticks[3:5]), sum(ticks)


def machine() -> str:
    """What it was measured on, and how busy that was before."""
    model = re.search(r"model name\s*: (.+)", read("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s*(\d+)", read("/proc/meminfo"))
    parts = [
        model[1] if model else platform.processor() or platform.machine(),
        f"{len(os.sched_getaffinity(0))} CPUs",
        f"{int(memory[1]) / 2**20:.0f} GiB" if memory else "",
        f"Linux {platform.release().partition('-')[0]}",
        f"Python {platform.python_version()}",
        subprocess.run(["gcc", "--version"], capture_output=True, text=True).stdout.partition("\n")[0],
        f"load average before: {os.getloadavg()[0]:.2f}",
    ]
    return ", ".join(filter(None, parts))


def read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def keep(name: str, report: Report, context: dict[str, str], *, publish: bool) -> None:
    """Write var/build/bench/NAME.json and, with `publish`, the section NAME of docs/benchmarks.md."""
    BUILD.mkdir(parents=True, exist_ok=True)
    record = {"name": name, "at": datetime.now(UTC).isoformat(timespec="seconds"), **context, **asdict(report)}
    (BUILD / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False))
    if publish:
        preface = "; ".join(f"{key}: {value}" for key, value in context.items())
        replace_section(name, f"{preface}; {record['at'][:10]}.\n\n{report.markdown()}")


def replace_section(name: str, text: str) -> None:
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    page = PAGE.read_text()
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{PAGE.relative_to(ROOT)} has no place for these figures: put {begin} and {end} there.")
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{after}")
