"""Live replies on the real engine and a real database file: committed before shown, lost by nobody."""

import asyncio
import os
import signal
import threading
from contextlib import aclosing, contextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from django.contrib.auth.models import User

from chat import live
from chat.models import Conversation, Message
from localllm.gateway import database, providers
from localllm.gateway.models import LanguageModel, UsageLog
from localllm.gateway.models.usage import unpack_ids, unpack_messages
from tests.inference.engine_on_starter import STARTER, SYSTEM

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio(loop_scope="package")]


def register():
    return LanguageModel.objects.register(
        STARTER, name="starter", make_default=True, system_prompt=SYSTEM, temperature=0.3
    )


@pytest.fixture(autouse=True)
def rows(transactional_db):
    register()


@pytest_asyncio.fixture(autouse=True, scope="module", loop_scope="package")
async def engines_end():
    yield
    await providers.local.aclose()


async def ask(text="Who are you?", **settings):
    """A new conversation with one question; returns its reply, which is being written."""

    def make():
        owner, _ = User.objects.get_or_create(username="alice")
        conversation = Conversation.objects.create(owner=owner, **settings)
        return conversation.send("c1", text)[1]

    reply = await database.write(make)
    live.start(reply)
    return reply


async def ask_for_long(text="Tell me everything."):
    """At this temperature all tokens are alike; with this seed the one that ends the reply does not come."""
    return await ask(text, temperature=99.0, top_p=1.0, min_p=0.0, top_k=0, max_tokens=700, seed=1)


async def stored(reply):
    return await database.read(Message.objects.get, pk=reply.pk)


async def read(reply, seen=None):
    """Follow a reply as a browser does; return the text it shows at the end."""
    text = ""
    async with aclosing(live.tail(reply.pk)) as frames:
        async for frame in frames:
            match frame["type"]:
                case "reset":
                    text = (await stored(reply)).text[: frame["to"]]
                case "text":
                    assert frame["at"] == len(text)
                    text += frame["text"]
            if seen is not None:
                seen.append((text, (await stored(reply)).text))
    return text


async def first_text(reply):
    async with aclosing(live.tail(reply.pk)) as frames:
        async for frame in frames:
            if frame["type"] == "text" or frame.get("to"):
                return


async def test_a_reply_streams_and_is_complete():
    reply = await ask()
    text = await read(reply)
    final = await stored(reply)
    assert (final.status, final.finish_reason, final.text) == ("complete", "stop", text)
    assert final.html.startswith("<p>") and final.completion_tokens > 5 and final.model_name == "starter"


async def test_nothing_is_shown_that_is_not_in_the_database():
    reply = await ask_for_long()
    seen = []
    await read(reply, seen)
    assert len(seen) > 3 and all(in_database.startswith(shown) for shown, in_database in seen)


async def test_two_readers_and_a_late_one_see_the_same():
    reply = await ask_for_long()
    readers = [asyncio.create_task(read(reply)) for _ in range(2)]
    await first_text(reply)
    texts = [await read(reply), *await asyncio.gather(*readers)]
    assert set(texts) == {(await stored(reply)).text}


async def test_stop_keeps_the_text():
    reply = await ask_for_long()
    await first_text(reply)
    assert live.stop(reply.pk)
    text = await read(reply)
    final = await stored(reply)
    assert final.status == "stopped" and final.can_continue
    assert final.text.startswith(text) and final.text


async def test_a_stopped_reply_continues_from_its_text():
    reply = await ask_for_long()
    await first_text(reply)
    live.stop(reply.pk)
    await read(reply)
    before = await stored(reply)
    again = await database.write(lambda: Conversation.objects.get(pk=before.conversation_id).continue_reply(before))
    live.start(again)
    await read(again)
    after = await stored(reply)
    assert after.status == "complete" and after.text.startswith(before.text) and len(after.text) > len(before.text)


@contextmanager
def held_writer():
    """Nothing is committed within the block."""
    release = threading.Event()
    database._writer.submit(release.wait)
    try:
        yield
    finally:
        release.set()


async def test_a_second_stop_does_not_lose_the_end_of_the_first():
    reply = await ask_for_long()
    await first_text(reply)
    with held_writer():
        assert live.stop(reply.pk)
        await asyncio.sleep(0.1)
        assert not live.stop(reply.pk)
        await asyncio.sleep(0.1)
    await read(reply)
    assert (await stored(reply)).status == "stopped"


async def test_a_stop_before_the_first_step_of_a_reply_ends_it():
    reply = await ask()
    assert live.stop(reply.pk) and not live._live[reply.pk].has_begun
    await read(reply)
    assert (await stored(reply)).status == "stopped"


@pytest.mark.parametrize("end", ["stop", "drain"])
async def test_an_end_that_waits_for_the_database_is_stored_with_its_text_once(end, monkeypatch):
    monkeypatch.setattr(live, "_is_draining", False)  # as it is again after the test
    reply = await ask(max_tokens=8)
    with held_writer():
        while not live._live[reply.pk].is_ending:
            await asyncio.sleep(0.01)
        live.stop(reply.pk) if end == "stop" else await live.drain(0.1)
        await asyncio.sleep(0.1)
    text = await read(reply)
    final, row = await stored(reply), await database.read(UsageLog.objects.get)
    assert final.status == "complete" and final.text == text == unpack_messages(bytes(row.messages))[-1].content


async def test_what_is_asked_is_answered_when_the_asker_is_gone_before_it_is_stored():
    def make():
        owner = User.objects.create(username="alice")
        return Conversation.objects.create(owner=owner).send("c1", "Who are you?")[1]

    with held_writer():
        asking = asyncio.create_task(live.begin(make))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
    while not (reply := await database.read(Message.objects.filter(role="assistant").first)) or reply.is_live:
        await asyncio.sleep(0.01)
    assert reply.status == "complete" and reply.text


async def test_a_reply_that_is_over_is_not_written_again():
    reply = await ask()
    await read(reply)
    live.start(await stored(reply))
    assert reply.pk not in live._live


async def test_the_account_of_an_answer_holds_all_its_parts():
    reply = await ask_for_long()
    await first_text(reply)
    live.stop(reply.pk)
    await read(reply)
    stopped = await stored(reply)
    assert stopped.completion_tokens and stopped.ttft_ms is not None and stopped.context_used < stopped.window
    live.start(await database.write(lambda: stopped.conversation.continue_reply(stopped)))
    await read(reply)
    parts = await database.read(lambda: [row.completion_tokens for row in UsageLog.objects.all()])
    assert (await stored(reply)).completion_tokens == sum(parts) > stopped.completion_tokens


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGSEGV])
async def test_three_replies_go_on_when_their_worker_is_killed(kill):
    replies = [await ask_for_long() for _ in range(3)]
    readers = [asyncio.create_task(read(reply)) for reply in replies]
    await asyncio.gather(*(first_text(reply) for reply in replies))
    model = await database.read(LanguageModel.objects.default)
    os.kill(providers.local.loaded(model.local()).pid, kill)
    texts = await asyncio.gather(*readers)
    finals = [await stored(reply) for reply in replies]
    assert [(f.status, f.text) for f in finals] == [("complete", text) for text in texts]
    assert all(f.error == "" and f.completion_tokens for f in finals)


async def test_replies_of_a_process_that_died_go_on_at_the_next_start():
    reply = await ask_for_long()
    await first_text(reply)
    await live.drain(5)  # as at shutdown: stop writing, keep what is committed
    before = await stored(reply)
    assert before.status == "streaming" and before.text
    live._is_draining = False  # the next process
    await live.resume_interrupted()
    await read(reply)
    after = await stored(reply)
    assert after.status == "complete" and after.text.startswith(before.text) and len(after.text) > len(before.text)


async def test_a_message_longer_than_the_context_fails_with_both_numbers_and_loses_nothing():
    reply = await ask("word " * 3000)
    await read(reply)
    final = await stored(reply)
    assert final.status == "failed" and "1024" in final.error
    assert (await database.read(lambda: Message.objects.get(pk=reply.parent_id))).text.startswith("word word")


async def test_a_model_file_that_is_gone_is_an_error_in_the_page(tmp_path):
    def make_gone():
        gone = tmp_path / "gone.gguf"
        gone.write_bytes(STARTER.read_bytes())
        model = LanguageModel.objects.register(gone)
        gone.unlink()
        return model

    model = await database.write(make_gone)
    reply = await ask(model=model)
    await read(reply)
    final = await stored(reply)
    assert final.status == "failed" and "is gone" in final.error


async def test_a_model_file_deleted_while_loaded_goes_on_serving(tmp_path):
    def make():
        path = Path(tmp_path / "fleeting.gguf")
        path.write_bytes(STARTER.read_bytes())
        return LanguageModel.objects.register(path, system_prompt=SYSTEM)

    model = await database.write(make)
    await read(await ask(model=model))
    Path(model.path).unlink()
    reply = await ask(model=model)
    await read(reply)
    assert (await stored(reply)).status == "complete"


async def test_each_generation_is_logged_with_what_a_replay_needs():
    reply = await ask(seed=7)
    await read(reply)
    final = await stored(reply)
    row = await database.read(UsageLog.objects.select_related("user").get, message_id=reply.pk)
    assert (row.source, row.user.username, row.seed, row.finish_reason) == ("chat", "alice", 7, "stop")
    assert len(row.model_sha256) == 64 and row.engine_build.startswith("llama-cpp-python")
    assert len(unpack_ids(row.prompt_ids)) == row.prompt_tokens == final.prompt_tokens
    assert len(unpack_ids(row.output_ids)) == row.completion_tokens == final.completion_tokens
    assert row.parameters["temperature"] == 0.3


async def test_a_stopped_generation_is_logged_with_the_tokens_it_wrote():
    reply = await ask_for_long()
    await first_text(reply)
    live.stop(reply.pk)
    await read(reply)
    row = await database.read(UsageLog.objects.get, message_id=reply.pk)
    assert row.finish_reason == "cancelled" and row.prompt_tokens and len(unpack_ids(row.output_ids)) > 0
