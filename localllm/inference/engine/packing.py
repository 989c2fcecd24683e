"""Where llama.cpp's threads run: on all CPUs, or two on each while neighbours want the same ones.

Two threads that share two CPUs with two neighbours run half of the time each, but seldom at the same time, and
what they compute together needs both: a quarter is left. Packed on one CPU they take turns there, the kernel
moves the neighbours to the other, and the half that is theirs is theirs (docs/benchmarks.md, "neighbours").
When to do it is not known here. Without Linux's /proc it does nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Rounds of a hash: some 30 ms of one CPU, computed without Python's lock.
BALLAST_ROUNDS = 120_000
ROOMY_SHARE = 0.5  # of the time, CPUs that were left to neighbours have nothing to do


class Packing:
    """All threads of this process; `num_threads` of them compute."""

    def __init__(self, num_threads: int) -> None:
        self.is_packed = False
        self._num_threads = num_threads
        self._cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        self._others: set[int] = set()  # which neighbours have while it is packed
        self._others_were = 0, 0

    def pack(self) -> None:
        # Where most of them are now the kernel has found the most room, beside another model of ours too.
        ran_ns = _ran_ns()
        by_room = sorted(self._cpus, key=lambda cpu: ran_ns[cpu], reverse=True)
        ours = set(by_room[: (self._num_threads + 1) // 2])
        _run_on(ours)
        # Threads that sleep at barriers look light to the kernel's balance, too light for it to move a neighbour
        # away: for a moment they get company that looks heavy.
        for _ in range(self._num_threads):
            threading.Thread(target=_be_heavy, name="ballast", daemon=True).start()
        self.is_packed, self._others = True, self._cpus - ours
        self._others_were = _ticks(self._others)

    def is_roomy(self) -> bool:
        """Whether the CPUs that are left to neighbours were mostly idle since it was asked last."""
        idle_before, total_before = self._others_were
        self._others_were = idle, total = _ticks(self._others)
        return idle - idle_before > ROOMY_SHARE * (total - total_before)

    def spread(self) -> None:
        _run_on(self._cpus)
        self.is_packed = False


def queued_s() -> float:
    """Seconds that the threads of this process were ready to run and had no CPU, since they began."""
    return sum(queued_ns for _, _, queued_ns in _threads()) / 1e9


def _ran_ns() -> Counter[int]:
    """By CPU: how long the threads that ran there last have run since they began."""
    ran_ns: Counter[int] = Counter()
    for thread, thread_ns, _ in _threads():
        with contextlib.suppress(OSError):
            ran_ns[int((thread / "stat").read_text().rpartition(")")[2].split()[36])] += thread_ns
    return ran_ns


def _threads() -> Iterator[tuple[Path, int, int]]:
    """Each thread of this process: its folder in /proc, how long it ran and how long it stood in line, in ns."""
    for thread in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError, ValueError):  # it has just ended
            ran_ns, queued_ns, _ = map(int, (thread / "schedstat").read_text().split())
            yield thread, ran_ns, queued_ns


def _ticks(cpus: set[int]) -> tuple[int, int]:
    """How long these CPUs were idle, and how long they were there, in ticks; zeros where the kernel tells nothing."""
    idle = total = 0
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return 0, 0  # a service may see nothing of /proc but processes
    for line in lines:
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            ticks = list(map(int, fields[:8]))  # user, nice, system, idle, iowait, irq, softirq, steal
            idle += ticks[3] + ticks[4]
            total += sum(ticks)
    return idle, total


def _be_heavy() -> None:
    hashlib.pbkdf2_hmac("sha256", b"", b"", BALLAST_ROUNDS)


def _run_on(cpus: set[int]) -> None:
    for thread in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):  # it has just ended, or the CPUs were taken from us
            os.sched_setaffinity(int(thread.name), cpus)
