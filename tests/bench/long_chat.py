"""A conversation of 2,000 messages beside 1,000 others: its page on the server, in Chromium, and a message in it.

Run as a program it makes the rows: the environment names the data directory.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import websockets
from playwright.async_api import async_playwright
from websockets import Origin

from tests.bench import site
from tests.bench.measure import Bound, Figure, Report
from tests.bench.plan import Plan

NUM_MESSAGES, NUM_OTHERS = 2_000, 1_000
ROUNDS = 20
CHROMIUM = "/usr/bin/chromium"
ANSWER = """Of the {n} ways to do this, the second is **shorter**:

1. Read the file.
2. Count its words, and keep the longest one.

```python
def longest(path):
    return max(open(path).read().split(), key=len)  # answer {n}
```

| way | lines |
| --- | ---: |
| first | 12 |
| second | 3 |
"""
# From the start of the navigation: the page is there, its scripts have run, and it takes a keystroke.
INTERACTIVE = "() => performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"


async def long_chat(plan: Plan) -> Report:
    rounds = plan.pairs(ROUNDS)
    with site.serving(plan.model, num_slots=1, window=1024, rows="tests.bench.long_chat", max_tokens=8) as here:
        chat = f"/chat/{here.conversations[0]}/"
        middle = here.conversations[1]  # the id of a message there
        await _acknowledged_ms(here)  # loads the model
        return Report(
            [
                Figure("page", "ms", _times_ms(here, chat, rounds), wanted=Bound("≤", 300)),
                Figure("page at a message found", "ms", _times_ms(here, f"{chat}?message={middle}", rounds)),
                Figure("earlier messages", "ms", _times_ms(here, f"{chat}messages?before={middle}", rounds)),
                Figure("search", "ms", _times_ms(here, "/chats?q=longest", rounds)),
                Figure("list of chats", "ms", _times_ms(here, "/chats", rounds)),
                Figure(
                    "interactive in Chromium", "ms", await _interactive_ms(here, chat, rounds), wanted=Bound("≤", 1000)
                ),
                Figure("message acknowledged", "ms", [await _acknowledged_ms(here) for _ in range(min(rounds, 5))]),
            ],
            notes=[f"{NUM_MESSAGES:,} messages, {NUM_OTHERS:,} other chats; whole responses over HTTP, one at a time."],
        )


def _times_ms(here: site.Site, path: str, count: int) -> list[float]:
    """Of whole responses, connection included."""

    def fetch() -> None:
        with closing(http.client.HTTPConnection(urlsplit(here.url).netloc)) as connection:
            connection.request("GET", path, headers={"Cookie": here.cookie})
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise SystemExit(f"{path} answered {response.status}.")

    fetch()
    return [_timed_ms(fetch) for _ in range(count)]


def _timed_ms(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


async def _interactive_ms(here: site.Site, path: str, count: int) -> list[float]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        name, _, value = here.cookie.partition("=")
        times = []
        for _ in range(count):
            context = await browser.new_context()
            await context.add_cookies([{"name": name, "value": value, "url": here.url}])
            page = await context.new_page()
            await page.goto(here.url + path, wait_until="domcontentloaded")
            times.append(float(await page.evaluate(INTERACTIVE)))
            await context.close()
        await browser.close()
        return times


async def _acknowledged_ms(here: site.Site) -> float:
    """From a sent message to its acknowledgement, which comes after the commit."""
    url = f"ws://{urlsplit(here.url).netloc}/ws/chat/{here.conversations[0]}/"
    async with websockets.connect(
        url, origin=Origin(here.url), additional_headers={"Cookie": here.cookie}, proxy=None
    ) as socket:
        started = time.perf_counter()
        await socket.send(json.dumps({"type": "send", "cid": uuid.uuid4().hex, "text": "And the next one?"}))
        ack = await _until(socket, "ack")
        elapsed_ms = (time.perf_counter() - started) * 1000
        await socket.send(json.dumps({"type": "resume", "message": ack["reply"]}))
        await _until(socket, "done")
        return elapsed_ms


async def _until(socket: websockets.ClientConnection, kind: str) -> dict[str, Any]:
    async with asyncio.timeout(120):
        async for data in socket:
            frame: dict[str, Any] = json.loads(data)
            if frame["type"] == "error":
                raise SystemExit(f"The chat answered: {frame['message']}")
            if frame["type"] == kind:
                return frame
    raise SystemExit("The server closed the websocket.")


def make_rows(model: Path, fields: dict[str, Any]) -> dict[str, object]:
    """Those of a site, with the long conversation and the id of a message in its middle in place of the others."""
    rows = site.make_rows(model, fields)
    from django.contrib.auth.models import User

    from chat.models import Conversation

    user = User.objects.get()
    Conversation.objects.all().delete()
    Conversation.objects.bulk_create(Conversation(owner=user, title=f"Chat {n}") for n in range(NUM_OTHERS))
    conversation, ids = long_conversation(user, NUM_MESSAGES)
    return {**rows, "conversations": [str(conversation.pk), str(ids[NUM_MESSAGES // 2])]}


def long_conversation(user: Any, num_messages: int) -> tuple[Any, list[uuid.UUID]]:
    """One branch of so many messages, questions and answers in turn."""
    from datetime import timedelta

    from django.utils import timezone

    from chat import markdown
    from chat.models import Conversation, Message

    conversation = Conversation.objects.create(owner=user, title="A long one")
    ids = [uuid.uuid4() for _ in range(num_messages)]
    began = timezone.now() - timedelta(minutes=num_messages)
    html = markdown.render(ANSWER.format(n=0))
    Message.objects.bulk_create(
        Message(
            id=id,
            conversation=conversation,
            parent_id=ids[n - 1] if n else None,
            role="assistant" if n % 2 else "user",
            text=ANSWER.format(n=n) if n % 2 else f"How is number {n} done?",
            html=html if n % 2 else "",
            status="complete",
            finish_reason="stop" if n % 2 else "",
            created_at=began + timedelta(minutes=n),
        )
        for n, id in enumerate(ids)
    )
    conversation.leaf_id = ids[-1]
    conversation.save()
    return conversation, ids


if __name__ == "__main__":
    print(json.dumps(make_rows(Path(sys.argv[1]), json.loads(sys.argv[2]))))
