"""kill -9 of the web process in the middle of replies, again and again: nothing acknowledged or shown is lost.

`CHAOS_KILLS=100` (make chaos) runs it longer.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
import string
import uuid
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.browser_client import Browser, Follower
from tests.chat.test_context_plan import FERRY
from tests.server import ADMIN, PASSWORD, Server

NUM_KILLS = int(os.environ.get("CHAOS_KILLS", "10"))
CHATS_PER_LIFE = 3
MOST_LIVE = 50  # replies: what is new is refused when 64 wait
# At this temperature all tokens are alike, so hardly a reply ends before it is long.
LONG_REPLIES = "UPDATE gateway_languagemodel SET temperature=100, top_k=0, top_p=1, min_p=0, max_tokens=900"

pytestmark = pytest.mark.timeout(60 + 15 * NUM_KILLS)


@dataclass
class Losses:
    """What a server that dies may never do. `history` is what browsers saw of each reply."""

    acknowledged: int = 0
    shown: int = 0
    history: dict[str, Follower] = field(default_factory=dict)


def query(home: Path, sql: str, *values: str) -> list[tuple]:
    with closing(sqlite3.connect(f"file:{home}/localllm.sqlite3?mode=ro", uri=True)) as database:
        return database.execute(sql, values).fetchall()


def reply_to(home: Path, cid: str) -> str:
    """The id of the reply to the message of that `cid`."""
    ((id,),) = query(home, "SELECT r.id FROM chat_message r JOIN chat_message q ON r.parent_id=q.id WHERE q.cid=?", cid)
    return str(uuid.UUID(id))


def stored(home: Path, reply_id: str) -> tuple[str, str]:
    rows = query(home, "SELECT status, text FROM chat_message WHERE id=?", uuid.UUID(reply_id).hex)
    return rows[0] if rows else ("missing", "")


async def live_once(server: Server, losses: Losses, alive_s: float) -> None:
    """Ask, follow, and kill the server in the middle; then compare what was shown with what is stored."""
    browser = await asyncio.to_thread(Browser, server.url, ADMIN, PASSWORD)
    cids = [uuid.uuid4().hex for _ in range(CHATS_PER_LIFE)]
    chats = [await asyncio.to_thread(browser.new_chat, "Tell me everything.", cid) for cid in cids]
    followers = [Follower(reply_to(server.home, cid)) for cid in cids]
    sockets = [await browser.connect(chat) for chat in chats]
    reading = [asyncio.create_task(f.follow(s)) for f, s in zip(followers, sockets, strict=True)]
    await asyncio.sleep(alive_s)
    await asyncio.to_thread(server.kill)
    await asyncio.gather(*reading)  # what was in the kernel already counts as shown
    for follower in followers:
        status, text = stored(server.home, follower.reply_id)
        losses.acknowledged += status == "missing"
        losses.shown += follower.to > len(text) or (follower.text not in text)
        losses.history[follower.reply_id] = follower


def wait_until_live(server: Server, at_most: int = 0) -> None:
    live = "SELECT 1 FROM chat_message WHERE status IN ('queued', 'streaming')"
    server._wait(lambda: len(query(server.home, live)) <= at_most, limit_s=120)


def prepared(home: Path, **options: str) -> Server:
    server = Server(home, **options)
    server.make_home()
    with closing(sqlite3.connect(server.database)) as database, database:
        database.execute(LONG_REPLIES)
    return server


def test_killing_the_server_loses_nothing_that_was_acknowledged_or_shown(tmp_path):
    server, losses, chance = prepared(tmp_path / "home"), Losses(), random.Random(7)
    with server:
        for _ in range(NUM_KILLS):
            asyncio.run(live_once(server, losses, chance.uniform(0.02, 0.6)))
            server.start()
            wait_until_live(server, at_most=MOST_LIVE)
        wait_until_live(server)

    statuses = [stored(server.home, id)[0] for id in losses.history]
    assert (losses.acknowledged, losses.shown) == (0, 0)
    assert statuses == ["complete"] * (CHATS_PER_LIFE * NUM_KILLS), "Every reply goes on by itself, to its end."
    assert all(f.text in stored(server.home, id)[1] for id, f in losses.history.items())
    assert any(f.to for f in losses.history.values()), "The test must have seen text."
    assert query(server.home, "PRAGMA integrity_check") == [("ok",)]


def test_the_same_test_sees_a_server_that_shows_before_it_commits(tmp_path):
    server, losses = prepared(tmp_path / "home", program="tests/swapped_manage.py"), Losses()
    with server:
        for _ in range(5):
            asyncio.run(live_once(server, losses, alive_s=0.4))
            if losses.shown:
                return
            server.start()
    pytest.fail("The fault was there, and the test did not see it.")


# More replies than the engine's queue holds, and one that is as long as the window

INTERRUPTED = """
from django.contrib.auth.models import User
from chat.models import Conversation
owner = User.objects.get(username="$name")
for number in range(120):
    chat = Conversation.objects.create(owner=owner, max_tokens=150, temperature=100, top_k=0, top_p=1, min_p=0)
    _, reply = chat.send(f"cid {number}", "Who are you?")
reply.append("x~" * 1200)
"""


def test_all_replies_go_on_when_there_are_more_than_the_queue_holds(tmp_path):
    with Server(tmp_path / "home") as server:
        said_by(server, INTERRUPTED)
        server.kill()
        server.start()
        wait_until_live(server)
    ended = query(server.home, "SELECT status, error FROM chat_message WHERE role='assistant'")
    assert ended == [("complete", "")] * 120
    longest = query(server.home, "SELECT text, finish_reason FROM chat_message WHERE text LIKE 'x~%'")
    assert longest == [("x~" * 1200, "length")]


# What a reply is asked with outlives the process

STARTED = (
    "SELECT r.id FROM chat_message r JOIN chat_message q ON r.parent_id=q.id WHERE q.cid=? AND length(r.text) > 20"
)
# By chance alone, and always the same one: the answer is long enough to be killed.
MAKE_CHAT = (
    FERRY
    + """
pk = ferry("$name", num_pairs=$pairs)
Conversation.objects.filter(pk=pk).update(temperature=100, top_k=0, top_p=1, min_p=0, seed=1)
print(pk)
"""
)
MAKE_FILE = """
from django.contrib.auth.models import User
from chat.attachments import File
from localllm.inference.documents.extraction import Extract
text = "\\n\\n".join(f"Town number {n} was founded in {1000 + n}. " + "It has a church. " * 40 for n in range(60))
extract = Extract(text=text, media_type="text/plain")
print(File.objects.add(User.objects.get(username="$name"), "towns.txt", len(text), extract).pk)
"""
# What a reply is to be asked with, as the rows have it, and what it was asked with in the end
PROMPT = """
from chat.models import Message
reply = Message.objects.select_related("conversation__model", "parent").get(pk="$reply")
print([message.content for message in reply.conversation.request_for(reply).messages])
"""
ASKED = """
from localllm.gateway.models import UsageLog
print([message.content for message in UsageLog.objects.get(message_id="$reply").dialogue[:-1]])
"""


def said_by(server: Server, program: str, **values: object) -> str:
    done = server.manage("shell", "-v0", "-c", string.Template(program).substitute(name=ADMIN, **values))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


async def killed_while_answering(server: Server, chat: str, **frame: object) -> str:
    """Ask, wait for the first words, and kill the server; the id of the reply."""
    browser, cid = await asyncio.to_thread(Browser, server.url, ADMIN, PASSWORD), uuid.uuid4().hex
    async with await browser.connect(chat) as socket:
        server.pause()
        await socket.send(json.dumps({"type": "send", "cid": cid, "text": "When was town number 42 founded?", **frame}))
        async with asyncio.timeout(60):
            while not (found := query(server.home, STARTED, cid)):
                server.run_for_a_moment()
                await asyncio.sleep(0)
        await asyncio.to_thread(server.kill)
    return str(uuid.UUID(found[0][0]))


@pytest.mark.parametrize(("pairs", "has_file"), [(1, True), (16, False), (5, True)])
def test_a_killed_reply_goes_on_with_the_same_passages_and_the_same_summary(tmp_path, pairs, has_file):
    server = prepared(tmp_path / "home")
    with server:
        chat = said_by(server, MAKE_CHAT, pairs=pairs)
        files = [{"file": said_by(server, MAKE_FILE), "mode": "passages"}] if has_file else []
        reply = asyncio.run(killed_while_answering(server, chat, attachments=files))
        assert stored(server.home, reply)[0] == "streaming", "The test must kill it half-way."
        prompt, (_, text) = said_by(server, PROMPT, reply=reply), stored(server.home, reply)
        server.start()
        wait_until_live(server)
        assert said_by(server, ASKED, reply=reply) == prompt
    status, whole = stored(server.home, reply)
    assert status == "complete" and whole.startswith(text)
    assert ("Town number 42 was founded" in prompt) == has_file
    assert query(server.home, "SELECT count(*) FROM chat_summary") == [(int(pairs > 1),)]
