"""One KV cache for all slots (`kv_unified`) or one for each: which decodes faster, alone and beside long chats."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial

from localllm.inference.engine.host import EngineHost
from localllm.inference.engine.settings import EngineSettings
from tests.bench import workers
from tests.bench.doors import TEMPLATE_TOKENS, Counts, EngineDoor, engine, user, words
from tests.bench.measure import Figure, Report, alternate
from tests.bench.plan import Plan

NUM_SLOTS, WINDOW = 10, 2048
SHORT, LONG, ANSWER = 64, 1500, 48  # tokens
ROUNDS = 3
# What runs at once: prompts of so many tokens each.
LOADS = {
    "1 short": [SHORT],
    "4 short": 4 * [SHORT],
    "10 short": 10 * [SHORT],
    "1 long": [LONG],
    "4 long": 4 * [LONG],
    "10 long": 10 * [LONG],
    "1 short beside 3 long": [SHORT, LONG, LONG, LONG],
}


async def kv_unified(plan: Plan) -> Report:
    settings = EngineSettings(n_ctx=WINDOW, num_slots=NUM_SLOTS)
    async with AsyncExitStack() as stack:
        apart = await stack.enter_async_context(engine(plan.model, settings))
        with workers.replaced_by("tests.bench.unified_worker"):
            unified = await stack.enter_async_context(engine(plan.model, settings))
        figures = []
        for name, prompts in LOADS.items():
            if plan.is_quick and len(prompts) * max(prompts) > 2 * LONG:
                continue
            sides = partial(_decode_rate, apart, prompts), partial(_decode_rate, unified, prompts)
            await alternate(1, *sides)  # now the prompts are cached
            one, other = await alternate(plan.pairs(ROUNDS), *sides)
            figures.append(Figure(name, "tokens/s", one, "kv_unified", other))
    return Report(figures, notes=["Decoding only: tokens per second while all streams are writing."])


async def _decode_rate(host: EngineHost, prompts: Sequence[int], round: int) -> float:
    """Tokens per second of all streams, while all of them are writing."""
    arrivals = await asyncio.gather(*(_arrivals(host, length, i) for i, length in enumerate(prompts)))
    begin, end = max(times[0] for times in arrivals), min(times[-1] for times in arrivals)
    return sum(begin < at <= end for times in arrivals for at in times) / (end - begin)


async def _arrivals(host: EngineHost, num_prompt: int, i: int) -> list[float]:
    chat = user(words(num_prompt - TEMPLATE_TOKENS, i))
    times = []
    async with aclosing(EngineDoor(host).stream(chat, ANSWER, f"user {i}")) as pieces:
        async for piece in pieces:
            if not isinstance(piece, Counts):
                times.append(time.perf_counter())
    return times
