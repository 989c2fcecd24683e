"""Files in messages, on the real engine: what is stored, what the model reads, what an answer may cite."""

import asyncio

import pytest
import pytest_asyncio
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import AsyncClient
from django.urls import reverse

from chat import attaching, citations, live
from chat.attachments import Attachment, File, FileChoice, safe_name
from chat.models import Conversation, ConversationError, Message
from localllm.gateway import database, providers
from localllm.gateway.models import LanguageModel, UsageLog
from localllm.gateway.models.prompt_template import PromptTemplate, PromptTemplateVersion, install_shipped
from localllm.inference.documents.extraction import Extract
from tests.inference.documents import pdf
from tests.inference.engine_on_starter import STARTER, SYSTEM

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio(loop_scope="package")]
TOWNS = "\n\n".join(f"Town number {n} was founded in {1000 + n}. " + "It has a church. " * 40 for n in range(60))


@pytest.fixture(autouse=True)
def alice(transactional_db):
    LanguageModel.objects.register(STARTER, name="starter", make_default=True, system_prompt=SYSTEM, temperature=0.3)
    install_shipped(PromptTemplate.objects, PromptTemplateVersion.objects)
    return User.objects.create_user("alice")


@pytest_asyncio.fixture(autouse=True, scope="module", loop_scope="package")
async def engines_end():
    yield
    await providers.local.aclose()


@pytest.fixture
def chat(alice):
    return Conversation.objects.create(owner=alice, max_tokens=40)


def stored(owner, text, name="a.txt", **fields):
    return File.objects.add(owner, name, len(text), Extract(text=text, media_type="text/plain", **fields))


def by(file, mode="full", cut_at=None):
    return [FileChoice(file.pk, mode, cut_at)]


async def answer(chat, text, attachments, cid="c1"):
    _, reply = await database.write(chat.send, cid, text, attachments)
    live.start(reply)
    async with asyncio.timeout(60):
        async for _ in live.tail(reply.pk):
            pass
    return await database.read(lambda: Message.objects.select_related("parent").get(pk=reply.pk))


def asked(reply):
    """The last message as the model reads it."""
    chat = Conversation.objects.select_related("owner", "model").get(pk=reply.conversation_id)
    return chat.request_for(reply).messages[-1].content


# Rows


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\temp\\a.txt", "a.txt"),
        ("‮שלום😀\x00.csv", "שלום😀.csv"),
        ("x" * 300 + ".pdf", "x" * 115 + "….pdf"),
        ("..", "file"),
        ("", "file"),
    ],
)
async def test_a_name_is_only_a_label(name, shown):
    assert safe_name(name) == shown


async def test_a_file_in_full_stands_before_the_question(chat, alice):
    _, reply = await database.write(lambda: chat.send("c1", "Who?", by(stored(alice, "Maya lives here.", "who.txt"))))
    assert await database.read(asked, reply) == "--- who.txt ---\nMaya lives here.\n--- end ---\n\nWho?"


async def test_a_cut_is_said_to_the_model_too(chat, alice):
    file = await database.write(lambda: stored(alice, "Page one.\n\nPage two.", page_starts=(0, 11)))
    _, reply = await database.write(chat.send, "c1", "Who?", by(file, "cut", 9))
    text = await database.read(asked, reply)
    assert "a.txt (cut after page 1, 9 of 20 characters)" in text and "Page two" not in text


async def test_sending_the_same_cid_again_attaches_once(chat, alice):
    file = await database.write(stored, alice, "Hi")
    first = await database.write(chat.send, "c1", "Who?", by(file))
    assert await database.write(chat.send, "c1", "Who?", by(file)) == first
    assert await database.read(Attachment.objects.count) == 1


async def test_an_edited_question_keeps_its_files(chat, alice):
    question, reply = await database.write(lambda: chat.send("c1", "Who?", by(stored(alice, "Maya"))))
    await database.write(lambda: reply.end("complete", html="", text="Hi."))
    _, other = await database.write(chat.edit, "c2", question, "Where?")
    assert (await database.read(asked, other)).startswith("--- a.txt ---\nMaya")


async def test_only_ones_own_files_of_this_chat_can_be_sent(chat, alice):
    def sent_elsewhere():
        bob = User.objects.create_user("bob")
        file = stored(alice, "Hi")
        Conversation.objects.create(owner=alice).send("c1", "Hello", by(file))
        return stored(bob, "Hi"), file

    for file in await database.write(sent_elsewhere):
        with pytest.raises(ConversationError, match="attach it again"):
            await database.write(chat.send, "c1", "Who?", by(file))
    assert not await database.read(chat.messages.exists)


async def test_files_go_with_their_chat(chat, alice):
    await database.write(lambda: chat.send("c1", "Who?", by(stored(alice, "Hi"))))
    await database.write(chat.delete)
    assert not await database.read(File.objects.exists)


# How much fits


async def test_what_fits_is_counted_and_what_does_not_is_cut_between_sentences(chat, alice):
    model = await database.read(LanguageModel.objects.default)
    await providers.local.load(model.local())
    short, long = await database.write(lambda: (stored(alice, "Hi."), stored(alice, TOWNS)))
    assert (await attaching.fit(short, chat, model)).cut_at is None
    fit = await attaching.fit(long, chat, model)
    assert fit.is_exact and fit.num_tokens > 1024 and TOWNS[: fit.cut_at].endswith(".")
    beside = await attaching.fit(long, chat, model, [await database.write(stored, alice, TOWNS[:1000])])
    assert beside.cut_at < fit.cut_at


async def test_what_was_cut_where_it_was_said_is_answered(chat, alice):
    model = await database.read(LanguageModel.objects.default)
    await providers.local.load(model.local())
    file = await database.write(stored, alice, TOWNS)
    fit = await attaching.fit(file, chat, model)
    reply = await answer(chat, "Who?", by(file, "cut", fit.cut_at))
    assert reply.status == "complete", reply.error


async def test_passages_are_chosen_for_the_question_stored_and_numbered_on(chat, alice):
    file = await database.write(stored, alice, TOWNS)
    reply = await answer(chat, "When was number 42 founded?", by(file, "passages"))
    assert reply.status == "complete", reply.error
    text = await database.read(asked, reply)
    assert "[1] (a.txt)" in text and "founded in 1042" in text
    again = await database.write(chat.regenerate, reply)
    assert await database.read(asked, again) == text, "What is stored stays."
    log = await database.read(lambda: UsageLog.objects.select_related("template_version__template").get())
    assert log.template_version.template.name == "rag_query"


async def test_a_second_question_about_passages_counts_on(chat, alice):
    await answer(chat, "When was number 42 founded?", by(await database.write(stored, alice, TOWNS[:900]), "passages"))
    file = await database.write(stored, alice, "Cats sleep a lot. " * 20)
    reply = await answer(chat, "Do cats sleep?", by(file, "passages"), cid="c2")
    passages = await database.read(lambda: chat.passages(chat.path(reply.pk)))
    assert sorted(passages) == list(range(1, len(passages) + 1)) and passages[len(passages)].file == file


async def test_a_reply_that_outlives_its_process_is_asked_the_same(chat, alice):
    fields = {"temperature": 99.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_tokens": 250, "seed": 1}
    await database.write(lambda: Conversation.objects.filter(pk=chat.pk).update(**fields))
    file = await database.write(stored, alice, TOWNS)
    _, reply = await database.write(chat.send, "c1", "When was number 42 founded?", by(file, "passages"))
    live.start(reply)
    async for frame in live.tail(reply.pk):
        if frame["type"] == "text":
            break
    await live.drain(5)  # as at shutdown
    text = await database.read(asked, reply)
    assert "[1] (a.txt)" in text
    live._is_draining = False  # the next process
    await live.resume_interrupted()
    async for _ in live.tail(reply.pk):
        pass
    assert await database.read(asked, reply) == text
    assert (await database.read(lambda: Message.objects.get(pk=reply.pk))).status == "complete"


async def test_a_summary_is_written_once_and_stored(chat, alice):
    reply = await answer(chat, "What is it about?", by(await database.write(stored, alice, TOWNS[:6000]), "summary"))
    assert reply.status == "complete", reply.error
    attachment = await database.read(Attachment.objects.get)
    assert attachment.summary and attachment.summary in await database.read(asked, reply)


async def test_a_chat_that_is_full_says_that_there_is_no_room_for_the_file(chat, alice):
    reply = await answer(chat, "word " * 890, by(await database.write(stored, alice, TOWNS), "passages"))
    assert reply.status == "failed" and "too few. Begin a new chat" in reply.error


# Citations


async def test_numbers_become_links_where_they_are_passages_and_no_code():
    html = '<p>So [1] and [7].</p><pre><code>a[1]</code></pre><a href="https://x">[1]</a> <strong>[1]</strong>'
    file = File(name='<b>"a".txt')
    passages = {1: attaching.Attachment(file=file, passages=[[1, 0, 2]]).shown_passages[0]}
    linked = citations.link(html, passages, "/p/")
    assert linked.count('href="/p/1"') == 2 and "a[1]" in linked and "[7]" in linked and "<b>" not in linked


# Pages


@pytest.fixture
async def client(alice):
    client = AsyncClient()
    await client.aforce_login(alice)
    return client


async def upload(client, name, data, **fields):
    return await client.post(reverse("chat:upload"), {"upload": SimpleUploadedFile(name, data), **fields})


async def test_an_uploaded_file_is_stored_and_shown_as_a_chip(client):
    response = await upload(client, "<i>.pdf", pdf("Hello"))
    file = await database.read(File.objects.get)
    html = response.content.decode()
    assert file.text == "Hello" and f'value="{file.pk}"' in html and "&lt;i&gt;.pdf" in html
    again = await client.get(reverse("chat:file-chip", args=[file.pk]))
    assert f'data-file="{file.pk}"' in again.content.decode()


async def test_a_file_that_cannot_be_read_is_refused_and_not_stored(client):
    response = await upload(client, "report.txt", b"MZ\x90\x00" + bytes(1000))
    assert response.status_code == 422 and "is a program" in response.content.decode()
    assert not await database.read(File.objects.exists)


async def test_only_what_was_not_sent_can_be_removed(client, chat, alice):
    unsent, sent = await database.write(lambda: (stored(alice, "a"), stored(alice, "b")))
    await database.write(chat.send, "c1", "Who?", by(sent))
    statuses = [(await client.post(reverse("chat:file-remove", args=[file.pk]))).status_code for file in (unsent, sent)]
    assert statuses == [204, 404] and await database.read(File.objects.get) == sent


async def test_a_new_chat_begins_with_its_files(client, alice):
    file = await database.write(stored, alice, "Maya lives here.")
    fields = {"text": "Who?", "cid": "c1", "file": str(file.pk), "mode": "full", "cut_at": ""}
    assert (await client.post(reverse("chat:create"), fields)).status_code == 303
    assert (await client.post(reverse("chat:create"), {**fields, "cid": "c2", "mode": "all"})).status_code == 400
    reply = await database.read(lambda: Message.objects.get(role="assistant"))
    assert "Maya lives here." in await database.read(asked, reply)
    live.stop(reply.pk)


async def test_a_citation_leads_to_the_passage_in_its_file(client, chat, alice):
    file = await database.write(stored, alice, TOWNS)
    reply = await answer(chat, "When was number 42 founded?", by(file, "passages"))
    await database.write(lambda: Message.objects.filter(pk=reply.pk).update(html="<p>In 1042 [1].</p>"))
    page = (await client.get(reverse("chat:show", args=[chat.pk]))).content.decode()
    address = reverse("chat:passage", args=[chat.pk, reply.pk, 1])
    assert f'href="{address}"' in page
    shown = (await client.get(address)).content.decode()
    assert '<mark id="cited"' in shown and "a.txt" in shown
    assert (await client.get(address.replace("/1", "/99"))).status_code == 404
