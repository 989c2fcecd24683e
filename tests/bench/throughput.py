"""Tokens per second: against llama-bench with one stream, llama-server with several, a lock around Llama."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import cast

from llama_cpp import CreateCompletionResponse, Llama

from localllm.inference.engine.chat_template import ChatTemplate
from localllm.inference.engine.settings import EngineSettings
from tests.bench import make_model, peers, site
from tests.bench.doors import (
    SAMPLERS,
    SAMPLING,
    TEMPLATE_TOKENS,
    ApiDoor,
    CompletionDoor,
    Door,
    EngineDoor,
    ask,
    engine,
    throughput,
    user,
    words,
)
from tests.bench.make_model import CHATML
from tests.bench.measure import Bound, Figure, Report, alternate
from tests.bench.plan import Plan

NUM_SLOTS, WINDOW = 10, 1024
PROMPT = ANSWER = 64  # tokens
PAIRS = 7
ONE_STREAM_PAIRS = 15  # its margin is narrower than the spread of a pair


async def one_stream(plan: Plan) -> Report:
    """Decoding at the engine's door, sampling included, against llama-bench, which samples nothing."""
    num_tokens = 2 * ANSWER
    command = peers.bench_command(plan.model, num_threads=plan.num_threads, depth=PROMPT, num_tokens=num_tokens)
    async with engine(plan.model, EngineSettings(n_ctx=WINDOW, num_slots=1)) as host:

        async def ours(round: int) -> float:
            chat = user(words(PROMPT - TEMPLATE_TOKENS, round))
            return (await ask(EngineDoor(host), chat, num_tokens)).decode_rate

        async def theirs(round: int) -> float:
            return await asyncio.to_thread(peers.bench, command)

        here, there = await alternate(plan.pairs(ONE_STREAM_PAIRS), ours, theirs)
    figure = Figure("one stream", "tokens/s", here, "llama-bench", there, Bound("≥", 0.97))
    return Report([figure], [peers.command_line(command)])


async def door(plan: Plan) -> Report:
    """At the engine's door, against llama-server's /completion."""
    command = _server_command(plan)
    settings = EngineSettings(n_ctx=WINDOW, num_slots=NUM_SLOTS)
    async with engine(plan.model, settings) as host:
        with peers.running(command) as url:
            figures = await _compare(plan, EngineDoor(host), CompletionDoor(url), Bound("≥", 0.98))
    return Report(figures, [peers.command_line(command)])


async def api(plan: Plan) -> Report:
    """Over HTTP: /v1/chat/completions on both sides."""
    command = _server_command(plan)
    with site.serving(plan.model, num_slots=NUM_SLOTS, window=WINDOW) as here, peers.running(command) as url:
        ours = ApiDoor(here.url, here.key)
        theirs = ApiDoor(url, extra={"cache_prompt": False, "samplers": SAMPLERS, "ignore_eos": True})
        await ask(ours, user("people"), 8)
        figures = await _compare(plan, ours, theirs, Bound("≥", 0.95))
    return Report(figures, [peers.command_line(command)])


async def lock(plan: Plan) -> Report:
    """At the engine's door, against the way most Python programs serve: llama_cpp.Llama behind a lock.

    With weights in 16 bits too: there one stream waits for memory, and several share what it has read.
    """
    figures = await _against_lock(plan, plan.model, "")
    return Report(figures + await _against_lock(plan, make_model.model(plan.shape, "f16"), ", weights in F16"))


async def _against_lock(plan: Plan, model: Path, what: str) -> list[Figure]:
    settings = EngineSettings(n_ctx=WINDOW, num_slots=NUM_SLOTS)
    llama = Llama(str(model), n_ctx=WINDOW, n_batch=512, n_threads=plan.num_threads, verbose=False)
    figures = []
    async with engine(model, settings) as host:
        for num_streams in (n for n in plan.streams if n >= 4):
            ours = partial(throughput, EngineDoor(host), num_streams)
            locked = partial(_locked, llama, num_streams)
            here, there = await alternate(plan.pairs(3), ours, locked)
            name = _name(num_streams) + what
            figures.append(Figure(name, "tokens/s", here, "locked Llama", there, Bound("≥", 2.3)))
    llama.close()
    return figures


def _server_command(plan: Plan) -> list[str]:
    return peers.server_command(plan.model, num_slots=NUM_SLOTS, window=WINDOW, num_threads=plan.num_threads)


async def _compare(plan: Plan, ours: Door, theirs: Door, wanted: Bound) -> list[Figure]:
    figures = []
    for num_streams in plan.streams:
        sides = partial(throughput, ours, num_streams), partial(throughput, theirs, num_streams)
        here, there = await alternate(plan.pairs(PAIRS), *sides)
        bound = wanted if num_streams > 1 else None
        figures.append(Figure(_name(num_streams), "tokens/s", here, "llama-server", there, bound))
    return figures


def _name(num_streams: int) -> str:
    return f"{num_streams} stream{'s' * (num_streams > 1)}"


async def _locked(llama: Llama, num_streams: int, round: int) -> float:
    return await asyncio.to_thread(_one_after_another, llama, num_streams, round)


def _one_after_another(llama: Llama, num_streams: int, round: int) -> float:
    """What a lock makes of so many requests that come at once."""
    template = ChatTemplate(CHATML)
    started, num_tokens = time.perf_counter(), 0
    for i in range(num_streams):
        prompt = template.render(user(words(PROMPT - TEMPLATE_TOKENS, (round, i)))).text
        answer = llama.create_completion(prompt, max_tokens=ANSWER, repeat_penalty=1.0, **SAMPLING)
        num_tokens += cast(CreateCompletionResponse, answer)["usage"]["completion_tokens"]
    return num_tokens / (time.perf_counter() - started)
