"""What the header of a model says it will take, beside what a worker then takes."""

from __future__ import annotations

from pathlib import Path

from localllm.inference.engine.gguf import read_header
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.memory import account, peak_resident_bytes, this_machine
from tests.bench.doors import EngineDoor, ask, engine, user, words
from tests.bench.make_model import model
from tests.bench.measure import Bound, Figure, Report
from tests.bench.plan import Plan

SHAPES = ("0.5b", "1.5b", "3b")
WINDOWS = (2048, 8192)
TOLERANCE = 0.1


async def fit(plan: Plan) -> Report:
    shapes = (plan.shape,) if plan.is_quick else SHAPES
    errors, rows = [], []
    for shape in shapes:
        for window in WINDOWS:
            path, settings = model(shape), EngineSettings(n_ctx=window)
            need = account(read_header(path), settings, this_machine())
            measured = await peak_bytes(path, settings)
            errors.append(abs(need.peak_bytes / measured - 1))
            parts = (need.weights_bytes, need.repacked_bytes, need.kv_bytes, need.compute_bytes, need.process_bytes)
            sizes = [f"{size / 1e6:,.0f}" for size in (*parts, need.peak_bytes, measured)]
            rows.append([shape, f"{settings.num_slots} × {window}", *sizes, f"{need.peak_bytes / measured:.3f}"])
    head = [
        "shape",
        "window",
        "weights",
        "repacked",
        "KV cache",
        "compute",
        "process",
        "predicted",
        "measured",
        "ratio",
    ]
    worst = Figure("largest error of all", "of the measured", [max(errors)], wanted=Bound("≤", TOLERANCE))
    return Report([worst], table=[head, *rows], notes=["Sizes in MB. Measured is VmHWM of the worker's /proc status."])


async def peak_bytes(path: Path, settings: EngineSettings) -> int:
    """The largest resident size of a worker that has computed one full batch."""
    async with engine(path, settings) as host:
        await ask(EngineDoor(host), user(words(settings.n_batch, 0)), 1)
        assert host.pid is not None
        return peak_resident_bytes(host.pid)
