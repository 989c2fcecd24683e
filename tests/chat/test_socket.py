"""The chat's websocket on a real server: hostile frames, foreign conversations, two tabs."""

import asyncio
import json
import sqlite3
import uuid
from contextlib import asynccontextmanager, closing

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.browser_client import Browser, Follower
from tests.server import ADMIN, PASSWORD, Server
from tests.test_durability import LONG_REPLIES, query, reply_to, stored


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("socket")) as server:
        yield server


@pytest.fixture(scope="module")
def ada(server):
    return Browser(server.url, ADMIN, PASSWORD)


@asynccontextmanager
async def chat(browser, server, text="Hello!"):
    """A new chat whose first reply is over, and a socket on it."""
    cid = uuid.uuid4().hex
    conversation = await asyncio.to_thread(browser.new_chat, text, cid)
    async with await browser.connect(conversation) as socket:
        follower = Follower(reply_to(server.home, cid))
        await follower.follow(socket)
        assert follower.is_done
        yield conversation, socket, follower.reply_id


async def tell(socket, **frame):
    """Send a frame; return the first answer that is an ack, a change or an error."""
    await socket.send(json.dumps(frame))
    return await heard(socket, "ack", "changed", "error")


async def heard(socket, *types):
    async with asyncio.timeout(20):
        while True:
            frame = json.loads(await socket.recv())
            if frame["type"] in types:
                return frame


MALFORMED = [
    "",
    "not JSON",
    "[]",
    "null",
    "1e999",
    '"send"',
    "{}",
    '{"type": "launch"}',
    '{"type": ["send"]}',
    '{"type": "send"}',
    '{"type": "send", "cid": "", "text": "x"}',
    '{"type": "send", "cid": 7, "text": "x"}',
    '{"type": "send", "cid": "' + "c" * 65 + '", "text": "x"}',
    '{"type": "send", "cid": "c", "text": 7}',
    '{"type": "send", "cid": "c", "text": "   "}',
    '{"type": "send", "cid": "c", "text": "\\u0000"}',
    '{"type": "send", "cid": "c", "text": "x", "schema": 7}',
    '{"type": "send", "cid": "c", "text": "x", "schema": "contact"}',
    '{"type": "send", "cid": "c", "text": "x", "schema": "00000000-0000-0000-0000-000000000000"}',
    '{"type": "send", "cid": "c", "text": "x", "attachments": null}',
    '{"type": "send", "cid": "c", "text": "x", "attachments": ["abc"]}',
    '{"type": "send", "cid": "c", "text": "x", "attachments": [{"file": "1", "mode": "full"}]}',
    '{"type": "send", "cid": "c", "text": "x", "attachments": [{"file": "00000000-0000-0000-0000-000000000000", '
    '"mode": "cut", "cut_at": 1e999}]}',
    '{"type": "send", "cid": "c", "text": "x", "attachments": [{"file": "00000000-0000-0000-0000-000000000000", '
    '"mode": "full"}]}',
    '{"type": "edit", "cid": "c", "text": "x", "message": "1 OR 1=1"}',
    '{"type": "stop", "message": null}',
    '{"type": "stop", "message": {"id": 1}}',
    '{"type": "resume", "message": "00000000-0000-0000-0000-000000000000"}',
    '{"type": "regenerate", "message": "../../etc/passwd"}',
    "[" * 100_000,
    '{"a":' * 5_000 + "1" + "}" * 5_000,
]


@pytest.mark.parametrize("frame", MALFORMED, ids=lambda frame: frame[:60])
async def test_a_malformed_frame_gets_a_sentence_and_harms_nothing(server, ada, frame):
    async with chat(ada, server) as (_, socket, _):
        await socket.send(frame)
        error = await heard(socket, "error")
        assert error["message"].endswith(".")
        assert (await tell(socket, type="send", cid=uuid.uuid4().hex, text="Hi!"))["type"] == "ack"


@pytest.mark.parametrize(("frame", "code"), [(b"\x00\x01", 4007), ("x" * 300_000, 1009)], ids=["binary", "300 kB"])
async def test_a_frame_that_is_no_text_or_too_big_closes_its_own_socket_only(server, ada, frame, code):
    async with chat(ada, server) as (_, socket, _):
        with pytest.raises(ConnectionClosed) as closed:
            await socket.send(frame)
            while True:
                await socket.recv()
        assert closed.value.rcvd.code == code
    assert server.health()[0] == 200


async def test_lone_surrogates_are_stored_as_question_marks(server, ada):
    async with chat(ada, server) as (_, socket, _):
        await socket.send('{"type": "send", "cid": "surrogate", "text": "a\\ud800b"}')
        await heard(socket, "ack")
    assert query(server.home, "SELECT text FROM chat_message WHERE cid='surrogate'") == [("a?b",)]


async def test_a_resent_message_is_stored_once(server, ada):
    async with chat(ada, server) as (_, socket, _):
        cid = uuid.uuid4().hex
        first = await tell(socket, type="send", cid=cid, text="Who are you?")
        assert await tell(socket, type="send", cid=cid, text="Who are you?") == first


async def test_of_two_tabs_that_send_at_once_one_is_told_to_wait(server, ada):
    async with chat(ada, server) as (conversation, one, _), await ada.connect(conversation) as two:
        server.pause()
        await asyncio.gather(
            one.send(json.dumps({"type": "send", "cid": "one", "text": "Tell me all about LocalLLM."})),
            two.send(json.dumps({"type": "send", "cid": "two", "text": "Tell me all about tokens."})),
        )
        answers = [await heard(one, "ack", "error"), await heard(two, "ack", "error")]
        server.go_on()
        assert sorted(answer["type"] for answer in answers) == ["ack", "error"]
        refused = next(answer for answer in answers if answer["type"] == "error")
        assert "still being written" in refused["message"] and refused["cid"]


async def test_another_tab_is_told_and_can_follow_and_stop(server, ada):
    async with chat(ada, server) as (conversation, one, _), await ada.connect(conversation) as two:
        make_long(server)
        server.pause()
        ack = await tell(one, type="send", cid=uuid.uuid4().hex, text="Tell me everything.")
        assert (await heard(two, "changed"))["type"] == "changed"
        follower = Follower(ack["reply"])
        reading = asyncio.create_task(follower.follow(two))
        while not stored(server.home, ack["reply"])[1]:
            server.run_for_a_moment()
            await asyncio.sleep(0.05)
        await one.send(json.dumps({"type": "stop", "message": ack["reply"]}))
        await reading
        server.go_on()
    status, text = stored(server.home, ack["reply"])
    assert status == "stopped" and text.endswith(follower.text)


def make_long(server):
    with closing(sqlite3.connect(server.home / "localllm.sqlite3")) as database, database:
        database.execute(LONG_REPLIES)


def shell(server, statement):
    done = server.manage("shell", "-c", f"from django.contrib.auth.models import User; {statement}")
    assert done.returncode == 0, done.stderr


async def close_code(browser, conversation):
    async with await browser.connect(conversation) as socket:
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        return closed.value.rcvd.code


async def test_an_unknown_a_foreign_and_a_deleted_conversation_look_alike(server, ada):
    shell(server, "User.objects.create_user('bob', password='pw of bob 123')")
    bob = await asyncio.to_thread(Browser, server.url, "bob", "pw of bob 123")
    async with chat(ada, server) as (conversation, _, reply):
        assert await close_code(bob, conversation) == 4004
        assert await close_code(ada, str(uuid.uuid4())) == 4004
        async with chat(bob, server) as (_, bobs, _):
            error = await tell(bobs, type="regenerate", message=reply)
            assert "not in this conversation" in error["message"]
        await asyncio.to_thread(ada.post, f"/chat/{conversation}/delete")
        assert await close_code(ada, conversation) == 4004


async def test_a_right_that_ends_closes_the_socket_at_the_next_frame(server, ada):
    shell(server, "User.objects.create_user('carol', password='pw of carol 123')")
    carol = await asyncio.to_thread(Browser, server.url, "carol", "pw of carol 123")
    async with chat(carol, server) as (_, socket, _):
        shell(server, "User.objects.filter(username='carol').update(is_active=False)")
        with pytest.raises(ConnectionClosed) as closed:
            await tell(socket, type="send", cid="late", text="Still here?")
        assert closed.value.rcvd.code == 4001
    assert not query(server.home, "SELECT 1 FROM chat_message WHERE cid='late'")


async def test_a_new_password_ends_the_sockets_of_other_sessions(server, ada):
    shell(server, "User.objects.create_user('dora', password='pw of dora 123')")
    dora = await asyncio.to_thread(Browser, server.url, "dora", "pw of dora 123")
    async with chat(dora, server) as (_, socket, _):
        shell(server, "dora = User.objects.get(username='dora'); dora.set_password('another 123'); dora.save()")
        with pytest.raises(ConnectionClosed) as closed:
            await tell(socket, type="send", cid="too late", text="Still here?")
        assert closed.value.rcvd.code == 4001


async def test_nobody_without_a_session_gets_a_socket(server, ada):
    stranger = Browser.__new__(Browser)
    stranger.url, stranger._cookies = server.url, []
    conversation = await asyncio.to_thread(ada.new_chat, "Hello!")
    try:
        assert await close_code(stranger, conversation) == 4001
    except InvalidStatus as refused:
        assert refused.response.status_code == 403
