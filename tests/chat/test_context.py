"""The account of a conversation's tokens, and compression, on the real engine."""

import asyncio
from contextlib import aclosing

import pytest
import pytest_asyncio

from chat import live
from chat.attachments import Attachment, File
from chat.context import compression, ledger
from chat.context.ledger import Draft
from chat.models import ConversationError, Message
from localllm.gateway import database, providers
from localllm.gateway.models import LanguageModel, PromptTemplate, PromptTemplateVersion, UsageLog
from localllm.gateway.models.prompt_template import install_shipped
from localllm.inference.compression import Fact
from tests.chat.test_context_plan import chat, summarised
from tests.chat.test_live import read, register, stored

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio(loop_scope="package")]


@pytest.fixture(autouse=True)
def rows(transactional_db):
    register()
    install_shipped(PromptTemplate.objects, PromptTemplateVersion.objects)


@pytest_asyncio.fixture(autouse=True, scope="module", loop_scope="package")
async def engines_end():
    yield
    await providers.local.aclose()


# The ledger


async def load():
    model = await database.read(LanguageModel.objects.default)
    return await providers.local.info(model.local())


async def test_the_account_is_exactly_what_the_engine_counts():
    await load()
    conversation = await database.write(chat, 2)
    account = await ledger.take(conversation, draft=Draft("And back?"))
    _, reply = await database.write(conversation.send, "new", "And back?")
    live.start(reply)
    await read(reply)
    assert account.is_exact and account.num_tokens == (await stored(reply)).prompt_tokens
    assert sum(segment.num_tokens for segment in account.segments) == account.window == 1024


async def test_files_beside_what_is_written_are_counted_before_they_are_sent():
    await load()
    conversation = await database.write(chat, 1)
    file = File(name="mill.txt", text="The mill was built in 1887. " * 8, num_chars=224, page_starts=[])
    alone = await ledger.take(conversation, draft=Draft("When?"))
    full = await ledger.take(conversation, draft=Draft("When?", (Attachment(file=file, mode="full"),)))
    cut = await ledger.take(conversation, draft=Draft("When?", (Attachment(file=file, mode="cut", cut_at=60),)))
    passages = await ledger.take(conversation, draft=Draft("When?", (Attachment(file=file, mode="passages"),)))
    assert full.is_exact and full.parts["attachments"] > cut.parts["attachments"] > 0
    assert full.num_tokens == sum(full.parts.values()) > alone.num_tokens
    assert not passages.is_exact and passages.parts["attachments"] == 1024 // 4


async def test_counts_are_kept_by_the_messages_until_model_or_text_are_others():
    await load()
    conversation = await database.write(chat, 2)
    await ledger.take(conversation)
    first, second = (await database.read(conversation.branch))[:2]
    assert first.num_tokens and second.num_tokens and first.tokens_key != second.tokens_key
    await database.write(Message.objects.filter(pk=first.pk).update, text="Other words by now.")
    account = await ledger.take(conversation)
    assert account.by_message[first.pk] != first.num_tokens


async def test_a_model_that_is_not_loaded_is_not_loaded_to_count():
    await providers.local.aclose()
    account = await ledger.take(await database.write(chat, 2), draft=Draft("And back?"))
    assert not account.is_exact and 0 < account.num_tokens < account.window
    model = await database.read(LanguageModel.objects.default)
    assert providers.local.loaded(model.local()) is None


async def test_reasoning_takes_nothing_of_the_context():
    await load()
    conversation = await database.write(chat, 1)
    before = (await ledger.take(conversation)).num_tokens
    await database.write(conversation.messages.filter(role="assistant").update, reasoning="Let me think. " * 50)
    assert (await ledger.take(conversation)).num_tokens == before


# Compression


async def ask(conversation, text="And back?"):
    _, reply = await database.write(conversation.send, f"cid of {text[:20]}", text)
    live.start(reply)
    return reply


async def test_a_full_window_is_compressed_before_the_reply_and_the_originals_stay():
    conversation = await database.write(chat, 14, length=2)
    reply = await ask(conversation)
    await read(reply)
    final, summary = await stored(reply), await database.read(conversation.summaries.get)
    assert final.status == "complete" and final.prompt_tokens < 1024 * 0.75
    assert summary.tokens_after <= compression.budget_of(1024) < summary.tokens_before
    assert await database.read(conversation.messages.count) == 30
    logs = UsageLog.objects.filter(template_version=summary.template_version_id, conversation_id=conversation.pk)
    assert await database.read(logs.exists)


async def test_compression_is_shown_as_a_stage():
    conversation = await database.write(chat, 14, length=2)
    reply = await ask(conversation)
    stages = []
    async with aclosing(live.tail(reply.pk)) as frames:
        async for frame in frames:
            if frame["type"] == "status":
                stages.append(frame["stage"])
    assert "compression" in stages


async def test_a_chat_that_turned_it_off_is_told_that_its_window_is_full():
    conversation = await database.write(chat, 14, length=2, compress_at=0)
    reply = await ask(conversation)
    await read(reply)
    final = await stored(reply)
    assert final.status == "failed" and "1024" in final.error
    assert not await database.read(conversation.summaries.exists)


async def test_an_answer_may_be_as_long_as_the_window_still_holds_whatever_the_chat_asks_for():
    conversation = await database.write(chat, 5, max_tokens=1000)
    reply = await ask(conversation)
    await read(reply)
    assert (await stored(reply)).status == "complete"


async def test_an_answer_that_goes_on_is_asked_as_it_was_begun():
    await load()
    conversation = await database.write(chat, 5, compress_at=50, length=2)
    _, reply = await database.write(conversation.send, "begun", "And back?")
    await database.write(reply.append, "It leaves ")
    await database.read(reply.refresh_from_db)
    before = await database.read(conversation.request_for, reply)
    live.start(reply)
    await read(reply)
    assert (await stored(reply)).text.startswith("It leaves ")
    assert not await database.read(conversation.summaries.exists)
    assert before.messages == (await database.read(UsageLog.objects.get, message_id=reply.pk)).dialogue[:-1]


async def test_a_short_chat_is_left_alone():
    conversation = await database.write(chat, 2)
    await read(await ask(conversation))
    assert not await database.read(conversation.summaries.exists)


async def test_the_next_compression_builds_on_the_summary_and_keeps_its_pinned_facts():
    conversation = await database.write(chat, 14, length=2)
    first = await database.write(lambda: summarised(conversation, conversation.branch()[1]))
    await read(await ask(conversation))
    second = await database.read(conversation.summaries.first)
    assert second.previous_id == first.pk and Fact("Maya", is_pinned=True) in second.facts.names


async def test_a_question_alone_too_long_is_refused_with_the_way_out_and_nothing_is_lost():
    conversation = await database.write(chat, 1)
    reply = await ask(conversation, "word " * 3000)
    await read(reply)
    final = await stored(reply)
    assert final.status == "failed" and "alone has" in final.error and "Attach the text as a file" in final.error
    assert (await database.read(lambda: Message.objects.get(pk=reply.parent_id))).text.startswith("word word")


async def test_by_hand_all_but_the_last_question_and_answer_are_summarised():
    conversation = await database.write(chat, 5)
    summary = await compression.start(conversation.pk)
    path = await database.read(conversation.path)
    assert summary.up_to_id == path[-3] and summary.num_messages == 8
    assert len((await database.read(conversation.context)).in_full) == 2


async def test_two_who_compress_at_once_get_one_summary():
    conversation = await database.write(chat, 5)
    one, other = await asyncio.gather(compression.start(conversation.pk), compression.start(conversation.pk))
    assert one == other and await database.read(conversation.summaries.count) == 1


async def test_one_by_hand_can_be_cancelled_and_leaves_nothing():
    conversation = await database.write(chat, 5)
    task = compression.start(conversation.pk)
    await asyncio.sleep(0)
    compression.cancel(conversation.pk)
    await asyncio.wait([task])
    assert task.cancelled() and not await database.read(conversation.summaries.count)
    assert await compression.start(conversation.pk)


async def test_there_must_be_something_to_summarise():
    conversation = await database.write(chat, 1)
    with pytest.raises(ConversationError, match="nothing to summarise yet"):
        await compression.start(conversation.pk)


async def test_a_summary_written_again_stands_beside_the_first_and_keeps_its_pins():
    conversation = await database.write(chat, 5)
    first = await compression.start(conversation.pk)
    pinned = first.facts.edited({"names": ["Maya"], "narrative": ["A ferry."]})
    await database.write(first.edit, pinned, 9, conversation.owner)
    second = await compression.start(conversation.pk, again=True)
    assert second.up_to_id == first.up_to_id and second != first
    assert Fact("Maya", is_pinned=True) in second.facts.names
    await database.write(second.undo)
    assert (await database.read(conversation.context)).summary == first


async def test_pinned_messages_are_no_part_of_a_summary_and_expanded_ones_become_one():
    conversation = await database.write(chat, 5)
    ids = await database.read(conversation.path)
    await database.write(conversation.messages.filter(pk=ids[0]).update, placement="pinned")
    await database.write(conversation.messages.filter(pk=ids[1]).update, placement="expanded")
    summary = await compression.start(conversation.pk)
    full = (await database.read(conversation.context)).in_full
    assert summary.num_messages == 7 and [message.pk for message in full] == [ids[0], *ids[-2:]]


async def test_the_head_of_the_prompt_is_not_computed_again_after_compression():
    model = await database.read(LanguageModel.objects.default)
    conversation = await database.write(chat, 14, length=2)
    await read(await ask(conversation))
    (head,) = await providers.local.count_texts(model.local(), [model.system_prompt])
    await read(await ask(conversation, "And on Sundays?"))
    first, second = await database.read(lambda: list(UsageLog.objects.exclude(message_id=None).order_by("created_at")))
    assert first.reused_tokens >= head, "the system prompt, after the first compression"
    assert second.reused_tokens > 200, "all of the first prompt, when nothing was compressed in between"
