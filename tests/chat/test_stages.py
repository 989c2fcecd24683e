"""What a tab hears before the first token of its answer, on a real server that writes one answer at a time."""

import asyncio
import sqlite3
import uuid
from contextlib import closing

import pytest

from tests.browser_client import Browser, Follower
from tests.server import ADMIN, PASSWORD, Server
from tests.test_durability import reply_to

# At this temperature all tokens are alike, so hardly an answer ends before it is long.
ONE_SLOT = "UPDATE gateway_languagemodel SET num_slots=1, temperature=100, top_k=0, top_p=1, min_p=0, max_tokens=300"
LONG = "Tell me all about tokens. " * 100  # is read in more than one step


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    server.make_home()
    with closing(sqlite3.connect(server.database)) as database, database:
        database.execute(ONE_SLOT)
    with server:
        yield server


async def ask(browser, server, text):
    """A new chat, and who follows its answer to the end."""
    cid = uuid.uuid4().hex
    conversation = await asyncio.to_thread(browser.new_chat, text, cid)
    follower = Follower(reply_to(server.home, cid))

    async def follow():
        async with await browser.connect(conversation) as socket:
            await follower.follow(socket)

    return follower, asyncio.create_task(follow())


async def until(server, is_so):
    while not is_so():
        server.run_for_a_moment()
        await asyncio.sleep(0.05)


async def test_who_waits_hears_its_place_how_long_it_may_take_and_how_far_its_prompt_is_read(server):
    browser = await asyncio.to_thread(Browser, server.url, ADMIN, PASSWORD)
    server.pause()
    first, one = await ask(browser, server, "Tell me everything.")
    await until(server, lambda: first.text)
    second, two = await ask(browser, server, "Tell me everything.")
    await until(server, lambda: second.statuses)
    third, three = await ask(browser, server, LONG)
    await until(server, lambda: third.statuses)
    server.go_on()
    await asyncio.gather(one, two, three)
    *places, prefill = third.statuses
    assert [(each["stage"], each["place"]) for each in places] == [("queue", 2), ("queue", 1)]
    assert places[0]["wait_s"] is None and places[1]["wait_s"] > 0  # known once the first answer has ended
    assert prefill["stage"] == "prefill" and 0 < prefill["fraction"] < 1
