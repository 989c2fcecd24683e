"""Answers by a schema in the chat, on the real engine: valid at the end, and going on after whatever happens."""

import asyncio
import json
import os
import signal
from contextlib import aclosing

import pytest
import pytest_asyncio
from django.contrib.auth.models import User

from chat import live
from chat.models import Conversation
from localllm.gateway import database, providers
from localllm.gateway.models import LanguageModel, UsageLog
from schemas_app.models import Schema
from tests.chat.test_live import register, stored

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio(loop_scope="package")]

CONTACT = """{"type": "object", "properties": {"name": {"type": "string"}, "city": {"type": "string"}},
 "required": ["name", "city"]}"""
NUMBERS = (
    '{"type": "array", "items": {"type": "integer", "minimum": 10, "maximum": 99}, "minItems": 40, "maxItems": 40}'
)
# The constraint does not know formats of this kind, and no text of one parenthesis is a regular expression.
IMPOSSIBLE = """{"type": "object", "properties": {"a": {"type": "string", "pattern": "^[(]$", "format": "regex"}},
 "required": ["a"]}"""
SENTENCE = "Extract name and city as JSON: Maya Lindgren lives in Uppsala."


@pytest.fixture(autouse=True)
def rows(transactional_db):
    register()


@pytest_asyncio.fixture(autouse=True, scope="module", loop_scope="package")
async def engines_end():
    yield
    await providers.local.aclose()


async def ask(schema_text, text=SENTENCE, **fields):
    """A new conversation whose first question is to be answered by the schema; its reply is being written."""

    def make():
        owner, _ = User.objects.get_or_create(username="alice")
        schema = Schema.objects.create(
            owner=owner, slug=Schema.objects.free_slug("kind"), name="Kind", description="A person."
        )
        schema.add_version(text=schema_text, **{"max_tokens": 300, **fields})
        conversation = Conversation.objects.create(owner=owner)
        conversation.choose_schema(schema.pk)
        return conversation.send("c1", text)[1]

    reply = await database.write(make)
    live.start(reply)
    return reply


async def ask_and_pause():
    """A long answer by a schema that stands still in the middle, and its engine's process."""
    await frames_of(await ask(CONTACT))  # the model is loaded
    model = await database.read(LanguageModel.objects.default)
    pid = providers.local.loaded(model.local()).pid
    os.kill(pid, signal.SIGSTOP)
    reply = await ask(NUMBERS)
    while not (await stored(reply)).text:
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(0.005)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.05)
    return reply, pid


def numbers(text):
    """Those that are whole in the beginning of an array."""
    return [int(each) for each in text.strip("[] ").split(",")[:-1]]


async def frames_of(reply):
    async with aclosing(live.tail(reply.pk)) as frames:
        return [frame async for frame in frames]


async def test_an_answer_by_a_schema_is_valid_and_says_what_vouches_for_it():
    reply = await ask(CONTACT)
    await frames_of(reply)
    final = await stored(reply)
    assert (final.status, set(json.loads(final.text))) == ("complete", {"name", "city"})
    assert final.guarantee["guarantee"] == "constrained" and final.guarantee["attempts"] == 1
    assert 0 < final.guarantee["fields"]["/name"]["probability"] <= 1
    assert "data-view" in final.html and final.model_name == "starter"


async def test_a_form_is_sent_whole_and_holds_only_what_is_committed():
    reply, pid = await ask_and_pause()
    shown = []
    async with aclosing(live.tail(reply.pk)) as frames:
        async for frame in frames:
            if frame["type"] == "reset":
                row = await stored(reply)
                if row.is_live:
                    shown.append((frame["to"], len(row.text)))
                os.kill(pid, signal.SIGCONT)
    assert len(shown) > 1 and all(to <= committed for to, committed in shown)


async def test_the_generation_is_logged_with_the_version_of_the_schema():
    reply = await ask(CONTACT)
    await frames_of(reply)
    row = await database.read(UsageLog.objects.get, message_id=reply.pk)
    assert (row.source, row.schema_version_id) == ("chat", reply.schema_version_id)
    assert row.parameters["temperature"] == 0.3 and row.parameters["max_tokens"] == 300


async def test_an_answer_goes_into_the_next_question_as_its_json():
    reply = await ask(CONTACT)
    await frames_of(reply)

    def next_request():
        conversation = Conversation.objects.get(pk=reply.conversation_id)
        conversation.choose_schema(None)
        return conversation.request_for(conversation.send("c2", "Who was that?")[1])

    request = await database.write(next_request)
    assert request.messages[-2].content == (await stored(reply)).text
    assert request.params.max_tokens != 300, "This one is a plain answer."


async def test_a_draft_that_is_not_valid_is_replaced_by_the_next_and_the_best_one_stays_to_be_seen():
    reply = await ask(IMPOSSIBLE)
    seen = []
    async with aclosing(live.tail(reply.pk)) as frames:
        async for _ in frames:
            seen.append((await stored(reply)).text)
    final = await stored(reply)
    assert (final.status, final.finish_reason, final.text) == ("failed", "invalid", '{"a": "("}')
    assert "No attempt gave data" in final.error and not final.can_continue
    assert await database.read(UsageLog.objects.filter(message_id=reply.pk).count) == 3
    assert not [text for text in seen if text.count("{") > 1]


async def test_an_answer_that_cannot_fit_says_so():
    reply = await ask(NUMBERS, max_tokens=20)
    await frames_of(reply)
    final = await stored(reply)
    assert final.status == "failed" and "max_tokens" in final.error


async def test_a_schema_that_is_refused_fails_with_its_reason():
    reply = await ask('{"type": "array", "items": {"$ref": "https://example.org/x.json"}}')
    await frames_of(reply)
    final = await stored(reply)
    assert final.status == "failed" and "example.org" in final.error


async def test_a_stopped_answer_keeps_its_part_and_goes_on_when_asked():
    reply, pid = await ask_and_pause()
    live.stop(reply.pk)
    os.kill(pid, signal.SIGCONT)
    await frames_of(reply)
    part = await stored(reply)
    assert part.status == "stopped" and "data-view" in part.html and part.can_continue
    again = await database.write(lambda: Conversation.objects.get(pk=part.conversation_id).continue_reply(part))
    live.start(again)
    await frames_of(again)
    final = await stored(reply)
    assert final.status == "complete" and len(json.loads(final.text)) == 40
    assert json.loads(final.text)[: len(numbers(part.text))] == numbers(part.text)


async def test_an_answer_goes_on_when_its_worker_is_killed_in_the_middle():
    reply, pid = await ask_and_pause()
    before = numbers((await stored(reply)).text)
    os.kill(pid, signal.SIGKILL)
    await frames_of(reply)
    final = await stored(reply)
    assert (final.status, final.guarantee["guarantee"]) == ("complete", "constrained")
    assert len(json.loads(final.text)) == 40 and json.loads(final.text)[: len(before)] == before
