"""kill -9 in the middle of a compression, and compressions that two tabs ask for, on a real server."""

import asyncio
import json
import time
import uuid

from tests.browser_client import Browser
from tests.chat.test_context_plan import FERRY
from tests.chat.test_socket import heard
from tests.server import ADMIN, PASSWORD, Server
from tests.test_durability import query, reply_to, stored, wait_until_live

FILL = FERRY + f"print(ferry('{ADMIN}', num_pairs=20))"


def fill(server):
    """A chat whose window is nearly full."""
    done = server.manage("shell", "-v0", "-c", FILL)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


async def test_a_server_killed_while_it_summarises_loses_nothing_and_answers_at_the_next_start(tmp_path):
    with Server(tmp_path / "home") as server:
        conversation, cid = fill(server), uuid.uuid4().hex
        browser = await asyncio.to_thread(Browser, server.url, ADMIN, PASSWORD)
        server.pause()
        async with await browser.connect(conversation) as socket:
            await socket.send(json.dumps({"type": "send", "cid": cid, "text": "And back?"}))
            await heard(socket, "ack")
        for _ in range(3):
            server.run_for_a_moment()
            time.sleep(0.1)
        server.kill()
        assert query(server.home, "SELECT 1 FROM chat_summary") == []
        server.start()
        wait_until_live(server)
        assert stored(server.home, reply_to(server.home, cid))[0] == "complete"
        assert len(query(server.home, "SELECT 1 FROM chat_summary")) == 1
        assert len(query(server.home, "SELECT 1 FROM chat_message WHERE text <> ''")) == 42


async def test_of_two_tabs_that_compress_at_once_both_get_the_one_summary(server):
    conversation = fill(server)
    browser = await asyncio.to_thread(Browser, server.url, ADMIN, PASSWORD)
    async with await browser.connect(conversation) as one, await browser.connect(conversation) as two:
        await asyncio.gather(*(tab.send('{"type": "compress"}') for tab in (one, two)))
        assert (
            (await heard(one, "changed", "error"))["type"]
            == (await heard(two, "changed", "error"))["type"]
            == "changed"
        )
    summaries = query(server.home, "SELECT 1 FROM chat_summary WHERE conversation_id=?", uuid.UUID(conversation).hex)
    assert len(summaries) == 1


async def test_a_tab_that_opens_meanwhile_is_told_that_a_summary_is_being_written(server):
    conversation = fill(server)
    browser = await asyncio.to_thread(Browser, server.url, ADMIN, PASSWORD)
    server.pause()
    async with await browser.connect(conversation) as one:
        await one.send('{"type": "compress"}')
        assert (await heard(one, "compressing"))["is_on"]
        async with await browser.connect(conversation) as two:
            assert (await heard(two, "compressing"))["is_on"]
            server.go_on()
            assert not (await heard(two, "compressing"))["is_on"]


async def test_a_compression_without_sense_is_answered_with_a_sentence(server):
    browser = await asyncio.to_thread(Browser, server.url, ADMIN, PASSWORD)
    conversation = await asyncio.to_thread(browser.new_chat, "Hello!")
    wait_until_live(server)
    async with await browser.connect(conversation) as socket:
        for frame in (
            '{"type": "compress"}',
            '{"type": "compress", "again": true}',
            '{"type": "compress", "again": 1}',
        ):
            await socket.send(frame)
            assert (await heard(socket, "error"))["message"].endswith(".")
