"""From a token sampled in the worker to its frame at a websocket client: the whole way of a chat reply.

That is worker, socket, door, commit, frame, client. The worker notes when it sampled each token, the
client when each frame came; a token has arrived with the first frame whose cursor is past its last character.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

import websockets
from websockets import Origin

from tests.bench import site
from tests.bench.doors import words
from tests.bench.measure import Bound, Figure, Report
from tests.bench.plan import Plan
from tests.bench.stamped_worker import STAMPS

NUM_CHATS = site.NUM_CONVERSATIONS
ANSWER = 128  # tokens
ROUNDS = 3
PROGRAM = ("-m", "tests.bench.stamped_serve")


@dataclass
class Reader:
    """What one tab received."""

    text: str = ""
    arrivals: list[tuple[float, int]] = field(default_factory=list)  # time, cursor

    def take(self, frame: dict[str, Any], at: float) -> None:
        match frame["type"]:
            case "reset":
                self.text = frame["tail"]
                self.arrivals.append((at, frame["to"]))
            case "text":
                self.text += frame["text"]
                self.arrivals.append((at, frame["to"]))

    def delays_ms(self, pieces: list[str], sampled_at: list[float]) -> list[float]:
        delays = []
        for end, sampled in zip(accumulate(map(len, pieces)), sampled_at, strict=True):
            arrived = next(at for at, cursor in self.arrivals if cursor >= end)
            delays.append((arrived - sampled) * 1000)
        return delays


async def frames(plan: Plan) -> Report:
    rounds = []
    with site.serving(plan.model, num_slots=NUM_CHATS, window=1024, program=PROGRAM, max_tokens=ANSWER) as here:
        await _chat(here, here.conversations[0], 0)  # loads the model
        for round in range(1, 1 + plan.pairs(ROUNDS)):
            rounds.append(await _delays_ms(here, round))
    p50, p95, p99 = ([quantiles(delays, n=100)[at - 1] for delays in rounds] for at in (50, 95, 99))
    name = f"{NUM_CHATS} live chats, sampled to frame"
    return Report(
        [
            Figure(f"{name}, p50", "ms", p50),
            Figure(f"{name}, p95", "ms", p95, wanted=Bound("≤", 60)),
            Figure(f"{name}, p99", "ms", p99),
        ],
        notes=[f"Of each round's {NUM_CHATS} × {ANSWER} tokens; the client runs on the same machine."],
    )


async def _delays_ms(here: site.Site, round: int) -> list[float]:
    STAMPS.unlink(missing_ok=True)
    readers = await asyncio.gather(*(_chat(here, id, round) for id in here.conversations))
    answers = {"".join(line["pieces"]): line for line in map(json.loads, STAMPS.read_text().splitlines())}
    return [delay for reader in readers for delay in reader.delays_ms(**answers[reader.text])]


async def _chat(here: site.Site, conversation: str, round: int) -> Reader:
    """One message and its reply, as a browser tab would."""
    url = f"ws://{urlsplit(here.url).netloc}/ws/chat/{conversation}/"
    reader, headers = Reader(), {"Cookie": here.cookie}
    async with websockets.connect(url, origin=Origin(here.url), additional_headers=headers, proxy=None) as socket:
        message = {"type": "send", "cid": uuid.uuid4().hex, "text": words(50, (conversation, round))}
        await socket.send(json.dumps(message))
        async for data in socket:
            at, frame = time.monotonic(), json.loads(data)
            match frame["type"]:
                case "ack":
                    await socket.send(json.dumps({"type": "resume", "message": frame["reply"]}))
                case "error":
                    raise SystemExit(f"The chat answered: {frame['message']}")
                case "done":
                    return reader
                case _:
                    reader.take(frame, at)
    raise SystemExit("The server closed the websocket before the reply was done.")
