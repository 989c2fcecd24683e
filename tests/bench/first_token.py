"""Time to the first token where a cache can help: a follow-up turn, and a system prompt that is known.

A person reads an answer before replying to it: a second, the same for both sides. A program replies at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from localllm.inference.engine.settings import EngineSettings
from localllm.inference.types import Message
from tests.bench import peers, site
from tests.bench.doors import ApiDoor, Chat, Door, EngineDoor, ask, engine, user, words
from tests.bench.measure import Bound, Figure, Report, alternate
from tests.bench.plan import Plan

NUM_SLOTS, WINDOW = 4, 4096  # as a model is loaded by default
SYSTEM, QUESTION, ANSWER = 200, 56, 64  # tokens
FOLLOW_UP = 24
READING_S = 1.0
FIRST = 4  # tokens of an answer of which only the first matters
PAIRS = 11

Measurement = Callable[[Door, int], Coroutine[Any, Any, float]]


async def first_token(plan: Plan) -> Report:
    """At our two doors, each against llama-server's /v1 with its prompt cache as it is by default."""
    command = peers.server_command(plan.model, num_slots=NUM_SLOTS, window=WINDOW, num_threads=plan.num_threads)
    settings = EngineSettings(n_ctx=WINDOW, num_slots=NUM_SLOTS)
    figures: list[Figure] = []
    async with engine(plan.model, settings) as host:
        with peers.running(command) as url:
            figures += await _compare(plan, "engine's door", EngineDoor(host), ApiDoor(url))
    with (
        site.serving(plan.model, num_slots=NUM_SLOTS, window=WINDOW) as here,
        peers.running(command) as url,
    ):
        figures += await _compare(plan, "/v1", ApiDoor(here.url, here.key), ApiDoor(url))
    return Report(figures, [peers.command_line(command)])


async def _compare(plan: Plan, place: str, ours: Door, theirs: Door) -> list[Figure]:
    figures = []
    for what, measure, wanted in MEASUREMENTS:
        sides = partial(measure, ours), partial(measure, theirs)
        await asyncio.gather(*(side(-1) for side in sides))  # the first time also loads code and pages
        mine, its = await alternate(plan.pairs(PAIRS), *sides)
        figures.append(Figure(f"{what}, {place}", "ms", mine, "llama-server", its, wanted))
    return figures


async def follow_up(door: Door, round: int, *, after_s: float = READING_S) -> float:
    first = _opening(("follow-up", round, after_s), round)
    answer = await ask(door, first, ANSWER, "ann")
    await asyncio.sleep(after_s)
    chat = (*first, Message("assistant", answer.text), *user(words(FOLLOW_UP, round)))
    return (await ask(door, chat, FIRST, "ann")).ttft_ms


async def known_system_prompt(door: Door, round: int) -> float:
    """Known from a conversation that is over."""
    await ask(door, _opening(("known", round), 0), ANSWER, "ann")
    return (await ask(door, _opening(("known", round), 1), FIRST, "bob")).ttft_ms


async def shared_system_prompt(door: Door, round: int) -> float:
    """Known from a conversation whose answer is being written."""
    is_streaming = asyncio.Event()

    async def read() -> None:
        async for piece in door.stream(_opening(("shared", round), 0), 10 * ANSWER, "ann"):
            if piece:
                is_streaming.set()

    reader = asyncio.create_task(read())
    await is_streaming.wait()
    answer = await ask(door, _opening(("shared", round), 1), FIRST, "bob")
    reader.cancel()
    await asyncio.wait([reader])
    return answer.ttft_ms


def _opening(system: object, question: object) -> Chat:
    return (Message("system", words(SYSTEM, system)), *user(words(QUESTION, ("question", system, question))))


MEASUREMENTS: tuple[tuple[str, Measurement, Bound], ...] = (
    ("follow-up turn", follow_up, Bound("≤", 1)),
    ("follow-up turn at once", partial(follow_up, after_s=0), Bound("≤", 1)),
    ("new conversation, known system prompt", known_system_prompt, Bound("<", 1)),
    ("the same, known from an answer under way", shared_system_prompt, Bound("<", 1)),
)
