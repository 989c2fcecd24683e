"""Summaries of any length of text within a budget of tokens, on the real starter model."""

from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.inference import chunking
from localllm.inference.errors import ContextOverflow
from localllm.inference.summarise import Progress, summarise
from localllm.inference.types import ChatRequest, Chunk, Finished, Message, SamplingParams

pytestmark = pytest.mark.asyncio(loop_scope="module")

REQUEST = ChatRequest(messages=(), params=SamplingParams(temperature=0.0))
SENTENCE = "On day {} the ferry to Utö carried {} passengers and one dog named Pixel. "
LONG = "".join(SENTENCE.format(day, day * 7) for day in range(150))


def instruct(text, max_tokens):
    return (Message("user", f"Summarise in {max_tokens} tokens:\n{text}"),)


async def run(starter, *passages, max_tokens=64, window=1024):
    events = summarise(
        starter.ask, REQUEST, passages, instruct, starter, max_tokens=max_tokens, window=window, num_parallel=4
    )
    async with aclosing(events):
        return [event async for event in events]


async def test_a_text_that_fits_is_read_once_and_streams(starter):
    events = await run(starter, "Maya lives in Uppsala.")
    assert len(starter.requests) == 1 and not any(isinstance(event, Progress) for event in events)
    assert isinstance(events[-1], Finished) and events[-1].usage.completion_tokens <= 64


async def test_a_text_longer_than_the_window_is_read_in_parts_side_by_side(starter):
    events = await run(starter, LONG)
    progress = [event for event in events if isinstance(event, Progress)]
    first_round = progress[: progress[0].num_parts + 1]
    assert [each.num_done for each in first_round] == list(range(first_round[0].num_parts + 1))
    assert 1 < starter.most_running <= 4
    assert any(isinstance(event, Chunk) for event in events[events.index(progress[-1]) :])
    assert events[-1].usage.completion_tokens <= 64


async def test_the_parts_together_are_the_text_and_each_ends_with_a_sentence(starter):
    await run(starter, LONG)
    parts = [request.messages[0].content.split("tokens:\n", 1)[1] for request in starter.requests]
    read = [part for part in parts if part in LONG]
    assert "".join(read) == LONG and all(part.endswith("Pixel. ") for part in read)


async def test_a_budget_that_leaves_no_room_for_the_text_is_refused_with_numbers(starter):
    with pytest.raises(ContextOverflow, match=r"1000 tokens .* holds 1024"):
        await run(starter, LONG, max_tokens=1000)


async def test_closing_it_cancels_all_parts(starter):
    events = summarise(starter.ask, REQUEST, [LONG], instruct, starter, max_tokens=64, window=1024, num_parallel=4)
    async with aclosing(events):
        async for _ in events:
            break
    assert starter.num_running == 0 and starter.host.num_requests == 0


@pytest.mark.parametrize("text", [LONG, "x" * 9000, "word " * 3000, "日本語の文。" * 400, "\n\n", "a"])
async def test_chunks_lose_nothing_and_never_exceed_their_size(starter, text):
    parts = await chunking.chunks(text, 100, starter)
    assert "".join(parts) == text
    assert max(await starter.texts(parts)) <= 100


@pytest.mark.parametrize("max_tokens", [1, 5, 40])
async def test_a_shortened_text_fits_and_shows_that_it_was_cut(starter, max_tokens):
    text = await chunking.shorten(LONG, max_tokens, starter)
    assert (await starter.texts([text]))[0] <= max_tokens
    assert text == "" or text.endswith(chunking.CUT)
    assert await chunking.shorten("Short.", 40, starter) == "Short."


@given(st.text())
async def test_sentences_joined_are_the_text(text):
    assert "".join(chunking.sentences(text)) == text
