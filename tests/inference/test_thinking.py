"""Thinking models on the real engine: reasoning apart from the answer, and before a document."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from localllm.inference.engine.gguf import read_header
from localllm.inference.engine.host import EngineHost
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import ConstraintError, EngineDied
from localllm.inference.types import ChatRequest, Chunk, Finished
from tests.inference.engine_on_starter import STARTER
from tests.inference.test_constrained_engine import LONG, PERSON, WILD, ask, is_valid
from tests.inference.test_probe import with_template

# The starter never thinks by itself: this template begins it, and the constraint ends it.
OPENS = "{% if add_generation_prompt %}<think>\n{% endif %}"
MENTIONS = "{# content.split('</think>') #}"


def thinking_starter(path: Path, more: str = OPENS) -> Path:
    return with_template(path, read_header(STARTER).chat_template + more)


@pytest.fixture(params=[OPENS])
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EngineHost]:
    host = EngineHost(thinking_starter(tmp_path / "thinking.gguf", request.param), EngineSettings())
    host.start()
    await host.wait_until_ready()
    yield host
    await host.stop()


async def read(host: EngineHost, request: ChatRequest) -> tuple[str, str, Finished]:
    chunks, last = [], None
    async with aclosing(host.stream(request)) as events:
        async for event in events:
            chunks += [event] if isinstance(event, Chunk) else []
            last = event
    assert isinstance(last, Finished)
    return "".join(chunk.reasoning for chunk in chunks), "".join(chunk.text for chunk in chunks), last


def asked(schema: Any, **more: Any) -> ChatRequest:
    return ask(schema, **WILD | more)


def free(**params: Any) -> ChatRequest:
    request = ask(PERSON, temperature=0.0, **params)
    return ChatRequest(messages=request.messages, params=request.params)


async def test_what_is_thought_is_no_answer(host: EngineHost) -> None:
    reasoning, text, _ = await read(host, free())
    assert reasoning and text == ""
    assert (await read(host, free(stop=(reasoning[0],))))[0] == reasoning


@pytest.mark.parametrize("max_tokens", [60, 120, 400])
async def test_a_document_follows_the_reasoning_within_one_budget(host: EngineHost, max_tokens: int) -> None:
    reasoning, text, finished = await read(host, asked(PERSON, max_tokens=max_tokens))
    assert reasoning and is_valid(PERSON, text) and finished.reason in ("stop", "closed")
    assert finished.usage.completion_tokens <= max_tokens


async def test_max_tokens_without_room_for_the_end_of_the_reasoning_is_refused(host: EngineHost) -> None:
    with pytest.raises(ConstraintError, match="at least") as caught:
        await read(host, asked(PERSON, max_tokens=5))
    assert caught.value.kind == "truncated"


async def test_logprobs_are_those_of_the_answer(host: EngineHost) -> None:
    tokens = b""
    async with aclosing(host.stream(asked(PERSON, num_logprobs=0))) as events:
        chunks = [event async for event in events if isinstance(event, Chunk)]
    tokens = b"".join(each.token for chunk in chunks for each in chunk.logprobs)
    assert tokens.decode() == "".join(chunk.text for chunk in chunks)


async def test_it_goes_on_in_either_phase(host: EngineHost) -> None:
    request = asked(PERSON, max_tokens=200)
    reasoning, text, _ = await read(host, request)
    more, document, _ = await read(host, _begun(request, reasoning[:20], ""))
    assert more and is_valid(PERSON, document)
    none, rest, _ = await read(host, _begun(request, reasoning, text[:12]))
    assert none == "" and is_valid(PERSON, text[:12] + rest)


async def test_a_document_survives_the_end_of_its_worker_while_it_thinks(host: EngineHost) -> None:
    reasoning, request = "", asked(LONG, max_tokens=900)
    with pytest.raises(EngineDied):
        async with aclosing(host.stream(request)) as events:
            async for event in events:
                reasoning += event.reasoning if isinstance(event, Chunk) else ""
                if len(reasoning) > 20 and host.pid is not None:
                    os.kill(host.pid, signal.SIGKILL)
                    await asyncio.sleep(0.1)
    _, text, _ = await read(host, _begun(request, reasoning, ""))
    assert is_valid(LONG, text)


@pytest.mark.parametrize("host", [MENTIONS], indirect=True)
async def test_a_model_that_may_think_may_also_answer_at_once(host: EngineHost) -> None:
    for seed in range(4):
        _, text, _ = await read(host, asked(PERSON, seed=seed))
        assert is_valid(PERSON, text)
    reasoning, text, _ = await read(host, free())
    assert reasoning == "" and text.startswith("I'm LocalLLM's small starter model")


def _begun(request: ChatRequest, reasoning: str, prefix: str) -> ChatRequest:
    return ChatRequest(
        messages=request.messages,
        params=request.params,
        response_format=request.response_format,
        reasoning=reasoning,
        prefix=prefix,
    )
