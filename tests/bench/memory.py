"""Resident memory of the web process, idle, and of a worker with a loaded model."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from localllm.inference.engine.settings import EngineSettings
from tests.bench import site
from tests.bench.doors import EngineDoor, ask, engine, user, words
from tests.bench.make_model import SHAPES
from tests.bench.measure import Bound, Figure, Report
from tests.bench.plan import Plan

NUM_SLOTS, WINDOW = 4, 4096
SETTLE_S = 2


async def memory(plan: Plan) -> Report:
    with site.serving(plan.model, num_slots=NUM_SLOTS, window=WINDOW) as here:
        await asyncio.sleep(SETTLE_S)
        web = resident_mb(here.pid)["Rss"]
    async with engine(plan.model, EngineSettings(n_ctx=WINDOW, num_slots=NUM_SLOTS)) as host:
        await ask(EngineDoor(host), user(words(1000, 0)), 64)
        assert host.pid is not None
        worker = resident_mb(host.pid)
    model = plan.model.stat().st_size / 1e6
    cache = SHAPES[plan.shape].kv_bytes(NUM_SLOTS * WINDOW) / 1e6
    return Report(
        [
            Figure("web process, idle", "MB", [web], wanted=Bound("<", 150)),
            Figure("worker beyond model and KV cache", "MB", [worker["Rss"] - model - cache], wanted=Bound("<", 200)),
        ],
        notes=[
            f"Rss of /proc/PID/smaps_rollup. The worker's is {worker['Rss']:.0f} MB, of which "
            f"{worker['Anonymous']:.0f} MB are its own and the rest are mapped files; the model's file has "
            f"{model:.0f} MB and the f16 KV cache of {NUM_SLOTS} × {WINDOW} tokens {cache:.0f} MB."
        ],
    )


def resident_mb(pid: int) -> dict[str, float]:
    """The kernel's account of a process's memory, by its own names, in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(kb) * 1024 / 1e6 for name, kb in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
