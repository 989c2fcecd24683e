"""python -m tests.bench [NAME ...]: measure the engine and the server beside llama.cpp's own programs.

All benchmarks take about twenty minutes, on a machine that does nothing else. Figures are printed, kept in
var/build/bench/NAME.json and written into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

from localllm.inference.engine.runner import ENGINE_BUILD
from tests.bench import throughput
from tests.bench.first_token import first_token
from tests.bench.fit import fit
from tests.bench.frames import frames
from tests.bench.kv_unified import kv_unified
from tests.bench.long_chat import long_chat
from tests.bench.make_model import SHAPES
from tests.bench.measure import Report, keep, machine
from tests.bench.memory import memory
from tests.bench.neighbours import neighbours
from tests.bench.plan import Plan
from tests.bench.recall import recall

BENCHMARKS: dict[str, Callable[[Plan], Coroutine[Any, Any, Report]]] = {
    "one-stream": throughput.one_stream,
    "door": throughput.door,
    "api": throughput.api,
    "lock": throughput.lock,
    "first-token": first_token,
    "frames": frames,
    "neighbours": neighbours,
    "memory": memory,
    "fit": fit,
    "kv-unified": kv_unified,
    "recall": recall,
    "long-chat": long_chat,
}


def main() -> None:
    # A bench that is ended must not leave servers and busy neighbours behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(BENCHMARKS))
    parser.add_argument("--shape", default="0.5b", choices=SHAPES, help="of the model (default: 0.5b)")
    parser.add_argument("--quick", action="store_true", help="one pair of each; docs/benchmarks.md stays")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"no benchmark is named {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}")
    plan = Plan(arguments.shape, arguments.quick)
    for name in arguments.names or BENCHMARKS:
        run(name, plan)


def run(name: str, plan: Plan) -> None:
    before = machine()
    started = time.monotonic()
    report = asyncio.run(BENCHMARKS[name](plan))
    context = {
        "machine": before,
        "model": report.model or plan.model.name,
        "engine": ENGINE_BUILD,
        "command": f"python -m tests.bench {name}",
    }
    print(f"\n{name} ({context['machine']}; {time.monotonic() - started:.0f} s)\n\n{report.markdown()}", flush=True)
    keep(name, report, context, publish=not plan.is_quick)


if __name__ == "__main__":
    main()
