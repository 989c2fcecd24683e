"""Thinking models in the chat, on the real engine: reasoning is committed, shown apart, and survives kills."""

import json
import os
import signal
from contextlib import aclosing

import pytest
import pytest_asyncio
from django.contrib.auth.models import User

from chat import live
from chat.models import Conversation, Message
from localllm.gateway import database, providers, replays
from localllm.gateway.models import LanguageModel, UsageLog
from schemas_app.models import Schema
from tests.chat.test_live import stored
from tests.inference.engine_on_starter import SYSTEM
from tests.inference.test_thinking import thinking_starter

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio(loop_scope="package")]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return thinking_starter(tmp_path_factory.mktemp("models") / "thinking.gguf")


@pytest.fixture(autouse=True)
def rows(transactional_db, path):
    LanguageModel.objects.register(path, name="thinking", make_default=True, system_prompt=SYSTEM)


@pytest_asyncio.fixture(autouse=True, scope="module", loop_scope="package")
async def engines_end():
    yield
    await providers.local.aclose()


async def ask(schema_text=None, **settings):
    def make():
        owner = User.objects.create(username="alice")
        conversation = Conversation.objects.create(owner=owner, **settings)
        if schema_text:
            schema = Schema.objects.create(owner=owner, slug="kind", name="Kind")
            schema.add_version(text=schema_text, max_tokens=200, temperature=2.0)
            conversation.choose_schema(schema.pk)
        return conversation.send("c1", "Maya Lindgren lives in Uppsala.")[1]

    reply = await database.write(make)
    live.start(reply)
    return reply


async def thoughts(reply, then=None):
    """Follow a reply; return the reasoning that its reader shows at the end. `then` is done once, at its first."""
    shown = ""
    async with aclosing(live.tail(reply.pk)) as frames:
        async for frame in frames:
            if frame["type"] == "reasoning":
                assert frame["at"] == len(shown), "A gap or a repetition."
                shown += frame["text"]
                assert (await stored(reply)).reasoning.startswith(shown), "Shown before it was committed."
                if then:
                    then, _ = None, then()
    return shown


async def test_reasoning_streams_apart_from_the_answer_and_is_timed():
    reply = await ask(max_tokens=100)
    shown = await thoughts(reply)
    final = await stored(reply)
    assert final.status == "complete" and final.reasoning == shown != ""
    assert "<think>" not in final.text + final.reasoning and final.reasoning_ms >= 0


async def test_a_slow_reader_is_shown_the_end_of_the_reasoning():
    reply = live.LiveReply(Message(), text="", reasoning="Let me")
    live._live[reply.message.pk] = reply
    shown = ""
    async with aclosing(live.tail(reply.message.pk)) as frames:
        async for frame in frames:
            if frame["type"] == "reasoning":
                shown += frame["text"]
                # While that frame is on its way the reply ends.
                live._live.pop(reply.message.pk, None)
                reply.reasoning, reply.is_over = "Let me see.", True
                reply.wake()
    assert shown == "Let me see."


async def test_data_follow_the_reasoning():
    reply = await ask('{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}')
    await thoughts(reply)
    final = await stored(reply)
    assert final.reasoning and isinstance(json.loads(final.text)["a"], int)
    assert final.guarantee["guarantee"] == "constrained"


async def test_a_thought_goes_on_when_its_worker_is_killed():
    reply = await ask(max_tokens=600, temperature=99.0, top_p=1.0, min_p=0.0, top_k=0, seed=1)
    model = await database.read(LanguageModel.objects.default)
    before = []

    def kill():
        before.append(live._live[reply.pk].reasoning)
        os.kill(providers.local.loaded(model.local()).pid, signal.SIGKILL)

    shown = await thoughts(reply, then=kill)
    final = await stored(reply)
    assert final.status == "complete" and final.reasoning == shown and len(shown) > len(before[0])


async def test_a_stopped_thought_goes_on_when_asked():
    reply = await ask(max_tokens=600, temperature=99.0, top_p=1.0, min_p=0.0, top_k=0, seed=1)
    await thoughts(reply, then=lambda: live.stop(reply.pk))
    part = await stored(reply)
    assert part.status == "stopped" and part.reasoning and part.can_continue
    again = await database.write(lambda: Conversation.objects.get(pk=part.conversation_id).continue_reply(part))
    live.start(again)
    await thoughts(again)
    final = await stored(reply)
    assert final.reasoning.startswith(part.reasoning) and len(final.reasoning) > len(part.reasoning)


async def test_reasoning_is_no_context_of_the_next_question():
    reply = await ask('{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}')
    await thoughts(reply)
    first = await stored(reply)
    conversation = await database.read(Conversation.objects.get, pk=first.conversation_id)
    _, second = await database.write(conversation.send, "c2", "And where else?")
    live.start(second)
    await thoughts(second)
    prompt, _ = await replays.texts(await database.read(UsageLog.objects.get, message_id=second.pk))
    assert first.reasoning and first.reasoning not in prompt
    assert first.text in prompt and prompt.count("<think>") == 1 and prompt.endswith("<think>\n")
