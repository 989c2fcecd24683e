"""How the worker's threads should wait for each other: with the machine to itself, and with busy neighbours.

llama.cpp's threads meet at several hundred barriers for each token. Waiting there by spinning is fastest when
every thread has a core, and worst when the thread that is waited for has none.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from localllm.inference.engine.settings import EngineSettings
from tests.bench.doors import EngineDoor, engine, throughput
from tests.bench.measure import Bound, Figure, Report, alternate, spread
from tests.bench.plan import Plan

NUM_SLOTS, WINDOW = 4, 1024
PROMPT, ANSWER = 16, 48  # tokens: decoding is what is looked at
STREAMS = (1, 4)
ROUNDS = 5
PREFIXES = ("OMP_", "GOMP_")


@dataclass(frozen=True, slots=True)
class Policy:
    """Environment of the worker; `num_threads` 0 is what the engine chooses."""

    name: str
    variables: Mapping[str, str] = field(default_factory=dict)
    num_threads: int = 0


DEFAULT = Policy("LocalLLM's default")
# libgomp's own default spins 300,000 times, then sleeps.
OPENMP = Policy("OpenMP's default", {"GOMP_SPINCOUNT": "300000"})
PASSIVE = Policy("passive", {"OMP_WAIT_POLICY": "passive"})
RIVALS = (
    OPENMP,
    PASSIVE,
    *(Policy(f"spin {count}", {"GOMP_SPINCOUNT": count}) for count in ("1000", "10000", "50000")),
)
ONE_THREAD = Policy("one thread", num_threads=1)
POLICIES = (DEFAULT, *RIVALS, ONE_THREAD)

# By (number of streams, has neighbours): tokens per second.
Rates = dict[tuple[int, bool], float]
CONDITIONS = [(num_streams, is_busy) for is_busy in (False, True) for num_streams in STREAMS]


async def neighbours(plan: Plan) -> Report:
    results = await alternate(plan.pairs(ROUNDS), *(partial(_rates, plan, policy) for policy in POLICIES))
    rates = dict(zip((policy.name for policy in POLICIES), results, strict=True))

    def of(policy: Policy, condition: tuple[int, bool]) -> list[float]:
        return [each[condition] for each in rates[policy.name]]

    figures = []
    for condition in CONDITIONS:
        rival = max(RIVALS, key=lambda policy: median(of(policy, condition))) if condition[1] else OPENMP
        wanted = Bound("≥", 1 if condition[1] else 0.97)
        figures.append(
            Figure(_name(condition), "tokens/s", of(DEFAULT, condition), rival.name, of(rival, condition), wanted)
        )
    rows = [["policy", *map(_name, CONDITIONS)]]
    rows += [[policy.name, *(spread(of(policy, each)) for each in CONDITIONS)] for policy in POLICIES]
    return Report(figures, table=rows, notes=["The neighbours are one busy Python process a core, equal in priority."])


def _name(condition: tuple[int, bool]) -> str:
    num_streams, is_busy = condition
    return f"{num_streams} stream{'s' * (num_streams > 1)}, {'neighbours' if is_busy else 'quiet'}"


async def _rates(plan: Plan, policy: Policy, round: int) -> Rates:
    settings = EngineSettings(n_ctx=WINDOW, num_slots=NUM_SLOTS, n_threads=policy.num_threads)
    rates: Rates = {}
    with _environment(policy.variables):
        async with engine(plan.model, settings) as host:
            for num_streams, is_busy in CONDITIONS:
                with _neighbours(plan.num_threads if is_busy else 0):
                    decode = partial(throughput, EngineDoor(host), num_prompt=PROMPT, num_tokens=ANSWER)
                    await decode(1, -1)  # a policy that looks around gets the time to
                    rates[num_streams, is_busy] = await decode(num_streams, round)
    return rates


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These OpenMP variables and no others, for workers started meanwhile."""
    before = {name: value for name, value in os.environ.items() if name.startswith(PREFIXES)}
    for name in before:
        del os.environ[name]
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def _neighbours(count: int) -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()
