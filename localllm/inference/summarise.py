"""A long text, or passages, as a summary of so many tokens.

What does not fit the window is read in parts, cut between sentences and summarised side by side; the summaries
are then read in place of the text, as often as need be. Only the last answer streams. `ask` is anything that
streams events for a request; which words are asked with is for `Instruct` to say. Knows no provider by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import msgspec

from localllm.inference import chunking
from localllm.inference.chunking import Counter
from localllm.inference.errors import ContextOverflow
from localllm.inference.structured import Ask
from localllm.inference.types import ChatRequest, Chunk, Event, Finished, Message

Instruct = Callable[[str, int], tuple[Message, ...]]  # (text, max_tokens) -> the messages that ask for its summary

SLACK_TOKENS = 8  # a text in a prompt may count a few tokens more than by itself
MIN_ROOM_TOKENS = 48  # for the text beside instructions and answer


class Progress(msgspec.Struct, frozen=True, tag=True):
    """`num_done` of the `num_parts` that are read so far; there may be another round over their summaries."""

    num_done: int
    num_parts: int


async def summarise(
    ask: Ask,
    request: ChatRequest,
    passages: Sequence[str],
    instruct: Instruct,
    counter: Counter,
    *,
    max_tokens: int,
    window: int,
    num_parallel: int = 1,
) -> AsyncGenerator[Progress | Event]:
    """Summarise `passages` in at most `max_tokens`. The last events are those of the final answer, then Finished.

    `request` gives sampling and owner; its messages are not looked at. At most `num_parallel` parts are read at
    once. Raises ContextOverflow where the window has no room for any text, and what `ask` raises.
    """
    room = window - max_tokens - await counter.messages(instruct("", max_tokens)) - SLACK_TOKENS
    if room < MIN_ROOM_TOKENS:
        raise ContextOverflow(
            f"A summary of {max_tokens} tokens and its instructions leave no room for the text: the context of this "
            f"model holds {window}. Ask for a shorter summary, or choose a model with a larger context."
        )

    def asking(text: str, num_tokens: int) -> ChatRequest:
        params = msgspec.structs.replace(request.params, max_tokens=num_tokens)
        return msgspec.structs.replace(request, messages=instruct(text, num_tokens), params=params)

    text = "\n\n".join(passages)
    while await chunking.count(text, counter) > room:
        parts = await chunking.chunks(text, room, counter)
        # Each summary is at most half as long as what it stands for, so the rounds come to an end.
        each = max(1, min(max_tokens, room // 2 - SLACK_TOKENS))
        summaries = [""] * len(parts)
        reading = _read(ask, [asking(part, each) for part in parts], summaries, num_parallel)
        async with aclosing(reading):
            async for progress in reading:
                yield progress
        text = "\n\n".join(summaries)
    async with aclosing(ask(asking(text, max_tokens))) as events:
        async for event in events:
            yield event


async def _read(
    ask: Ask, requests: list[ChatRequest], answers: list[str], num_parallel: int
) -> AsyncGenerator[Progress]:
    """Fill `answers`, with so many requests under way at a time. Closing it cancels them."""
    free = asyncio.Semaphore(num_parallel)

    async def read(number: int) -> None:
        async with free:
            answers[number] = await _answer(ask, requests[number])

    yield Progress(0, len(requests))
    tasks = [asyncio.create_task(read(number), name=f"summary of part {number}") for number in range(len(requests))]
    try:
        for num_done, task in enumerate(asyncio.as_completed(tasks), 1):
            await task
            yield Progress(num_done, len(requests))
    finally:
        for unfinished in tasks:
            unfinished.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(ask: Ask, request: ChatRequest) -> str:
    """The text of one answer; of one that was cut, its whole sentences."""
    text, was_cut = "", False
    async with aclosing(ask(request)) as events:
        async for event in events:
            if isinstance(event, Chunk):
                text += event.text
            elif isinstance(event, Finished):
                was_cut = event.reason == "length"
    whole = chunking.sentences(text)
    if was_cut and len(whole) > 1:
        text = "".join(whole[:-1])
    return text.strip()
