"""The doors at which tokens come out: our engine's, and the HTTP ones of both sides. Each streams an answer.

The clock starts before the request is made and is read as each piece arrives; the client is as thin as it can
be, because it takes its time from the very cores that are measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from localllm.inference.engine.chat_template import ChatTemplate
from localllm.inference.engine.host import EngineHost
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.types import ChatRequest, Chunk, Finished, Message, SamplingParams
from tests.bench.make_model import CHATML

Chat = tuple[Message, ...]

PARAMS = SamplingParams(temperature=0.7, top_k=40, top_p=0.95, min_p=0.05)
SAMPLING = {name: getattr(PARAMS, name) for name in ("temperature", "top_k", "top_p", "min_p")}
# llama-server's chain has more links, which do nothing by default but cost a little.
SAMPLERS = ["top_k", "top_p", "min_p", "temperature"]
# Each is one token of Qwen2's, with a space before it and without.
WORDS = ("people", "time", "year", "way", "day", "thing", "man", "world", "life", "hand", "part", "child")
TEMPLATE_TOKENS = 8  # around one user message, with the beginning of the answer


@dataclass(frozen=True, slots=True)
class Counts:
    """The last thing a door says: the prompt's and the answer's lengths in tokens."""

    prompt: int
    answer: int


class Door(Protocol):
    def stream(self, chat: Chat, num_tokens: int, owner: str = "") -> AsyncGenerator[str | Counts, None]:
        """The answer in pieces, then its Counts. Close it to cancel."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """When what arrived, in seconds of one clock."""

    text: str
    counts: Counts
    started_at: float
    first_at: float
    last_at: float

    @property
    def ttft_ms(self) -> float:
        return (self.first_at - self.started_at) * 1000

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first."""
        return (self.counts.answer - 1) / (self.last_at - self.first_at)


async def ask(door: Door, chat: Chat, num_tokens: int, owner: str = "") -> Answer:
    started = time.perf_counter()
    pieces, counts, first, last = [], None, 0.0, 0.0
    async with aclosing(door.stream(chat, num_tokens, owner)) as stream:
        async for piece in stream:
            if isinstance(piece, Counts):
                counts = piece
            elif piece:
                last = time.perf_counter()
                first = first or last
                pieces.append(piece)
    if counts is None or counts.answer != num_tokens:
        raise SystemExit(f"{door} answered with {counts}, but {num_tokens} tokens were asked for.")
    return Answer("".join(pieces), counts, started, first, last)


async def together(asks: Sequence[Awaitable[Answer]]) -> float:
    """Tokens per second over all answers, from the first request to the last token."""
    answers = await asyncio.gather(*asks)
    elapsed = max(a.last_at for a in answers) - min(a.started_at for a in answers)
    return sum(a.counts.answer for a in answers) / elapsed


async def throughput(door: Door, num_streams: int, round: int, *, num_prompt: int = 64, num_tokens: int = 64) -> float:
    """Tokens per second over so many chats at once, none of which was seen before."""
    chats = [user(words(num_prompt - TEMPLATE_TOKENS, (round, i))) for i in range(num_streams)]
    return await together([ask(door, chat, num_tokens, f"user {i}") for i, chat in enumerate(chats)])


def words(count: int, seed: object) -> str:
    return " ".join(random.Random(repr(seed)).choices(WORDS, k=count))


def user(text: str) -> Chat:
    return (Message("user", text),)


# Ours


@contextlib.asynccontextmanager
async def engine(path: Path, settings: EngineSettings) -> AsyncIterator[EngineHost]:
    """A worker process of ours, loaded and warm."""
    host = EngineHost(path, settings)
    host.start()
    try:
        await host.wait_until_ready()
        await ask(EngineDoor(host), user("people"), 8)
        yield host
    finally:
        await host.stop()


@dataclass(frozen=True, slots=True)
class EngineDoor:
    host: EngineHost

    async def stream(self, chat: Chat, num_tokens: int, owner: str = "") -> AsyncGenerator[str | Counts, None]:
        params = msgspec.structs.replace(PARAMS, max_tokens=num_tokens)
        request = ChatRequest(messages=chat, params=params, owner=owner)
        async with aclosing(self.host.stream(request)) as events:
            async for event in events:
                if isinstance(event, Chunk):
                    yield event.text
                elif isinstance(event, Finished):
                    yield Counts(event.usage.prompt_tokens, event.usage.completion_tokens)


# HTTP


class _CompletionEvent(msgspec.Struct):
    content: str = ""
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    stop: bool = False


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _ApiEvent(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None


@dataclass(frozen=True, slots=True)
class CompletionDoor:
    """llama-server's own /completion, its prompt cache off."""

    url: str

    async def stream(self, chat: Chat, num_tokens: int, owner: str = "") -> AsyncGenerator[str | Counts, None]:
        body = {
            **SAMPLING,
            "prompt": ChatTemplate(CHATML).render(chat).text,
            "n_predict": num_tokens,
            "ignore_eos": True,
            "cache_prompt": False,
            "samplers": SAMPLERS,
            "stream": True,
        }
        decode = msgspec.json.Decoder(_CompletionEvent).decode
        async with aclosing(post(f"{self.url}/completion", body)) as events:
            async for data in events:
                event = decode(data)
                yield event.content
                if event.stop:
                    yield Counts(event.tokens_evaluated, event.tokens_predicted)


@dataclass(frozen=True, slots=True)
class ApiDoor:
    """/v1/chat/completions of either side; `extra` is what only one of them takes."""

    url: str
    key: str = ""
    extra: Mapping[str, object] | None = None

    async def stream(self, chat: Chat, num_tokens: int, owner: str = "") -> AsyncGenerator[str | Counts, None]:
        body = {
            **SAMPLING,
            **(self.extra or {}),
            "model": "default",
            "messages": [{"role": message.role, "content": message.content} for message in chat],
            "max_tokens": num_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        decode = msgspec.json.Decoder(_ApiEvent).decode
        async with aclosing(post(f"{self.url}/v1/chat/completions", body, headers)) as events:
            async for data in events:
                if data == b"[DONE]":
                    continue
                event = decode(data)
                for choice in event.choices:
                    yield choice.delta.content or ""
                if event.usage:
                    yield Counts(event.usage.prompt_tokens, event.usage.completion_tokens)


async def post(url: str, body: object, headers: Mapping[str, str] | None = None) -> AsyncGenerator[bytes, None]:
    """The data of each server-sent event that answers a POST of `body` as JSON."""
    address, payload = urlsplit(url), msgspec.json.encode(body)
    lines = {
        "Host": address.netloc,
        "Content-Type": "application/json",
        "Content-Length": str(len(payload)),
        "Connection": "close",
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(f"POST {address.path} HTTP/1.1\r\n{head}\r\n".encode() + payload)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in answer.partition(b"\r\n")[0] or b"transfer-encoding: chunked" not in answer:
            raise SystemExit(f"{url} answered {answer!r} {await reader.read(1000)!r}, not 200 and a stream.")
        unread = b""
        async for chunk in _chunks(reader):
            *events, unread = (unread + chunk).split(b"\n\n")
            for event in events:
                if event.startswith(b"data: "):
                    yield event.removeprefix(b"data: ")
    finally:
        writer.close()


async def _chunks(reader: asyncio.StreamReader) -> AsyncGenerator[bytes, None]:
    while size := int(await reader.readline(), 16):
        yield (await reader.readexactly(size + 2))[:-2]
