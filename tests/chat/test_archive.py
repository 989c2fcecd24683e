"""Chats go out whole and come in once: our own files, ChatGPT's and Open WebUI's, and what is broken."""

import asyncio
import io
import json
import zipfile
from copy import deepcopy
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.test import AsyncClient
from django.urls import reverse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from chat.archive import exporting, format, importing, sources, splitting
from chat.archive.format import (
    AttachmentRecord,
    ConversationRecord,
    FeedbackRecord,
    FileRecord,
    MessageRecord,
    SummaryRecord,
)
from chat.archive.splitting import CutOff, Item
from chat.models import Conversation, Message
from localllm.gateway import database
from localllm.gateway.jobs import JobRunner
from localllm.gateway.models import Feedback, Job
from localllm.inference.compression import Fact, KeyFacts
from tests.chat.exports import chatgpt, gpt_node, open_webui

# Where conversations begin and end

objects = st.dictionaries(
    st.text(max_size=5),
    st.recursive(st.text(max_size=9) | st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=6)
    | st.just({"conversations": [{}]}),
    max_size=4,
)


def pieces(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


@given(st.lists(objects, max_size=6), st.sampled_from(["array", "named", "lines"]), st.integers(1, 40))
def test_it_finds_every_object_however_the_bytes_come(values, shape, size):
    text = {
        "array": json.dumps(values),
        "named": '{"format": "localllm", "version": 1, "conversations":' + json.dumps(values) + "}",
        "lines": "\n".join(map(json.dumps, values)).replace('"conversations"', '"c"'),
    }[shape]
    found = list(splitting.split(pieces(text.encode(), size)))
    expected = values if shape != "lines" else json.loads(json.dumps(values).replace('"conversations"', '"c"'))
    assert [json.loads(item.data) for item in found] == expected


@given(st.integers(0, 10_000), st.integers(1, 200))
def test_a_file_that_is_cut_gives_what_is_whole_and_says_where_it_ends(cut, size):
    data = json.dumps([chatgpt(str(number)) for number in range(4)]).encode()
    cut = cut % len(data)
    found = list(splitting.split(pieces(data[:cut], size)))
    items = [item for item in found if isinstance(item, Item)]
    assert [json.loads(item.data)["conversation_id"] for item in items] == [str(n) for n in range(len(items))]
    assert not cut or found[-1] == CutOff(cut)


def test_an_object_that_is_too_large_is_passed_over():
    data = json.dumps([{"a": "x" * 500}, {"b": 1}]).encode()
    assert [item.data for item in splitting.split(pieces(data, 64), max_item=100)] == [None, b'{"b": 1}']


# What other programs write


def test_a_conversation_of_chatgpt_keeps_its_versions_and_loses_its_tools():
    found = sources.read(json.dumps(chatgpt()).encode())
    assert [(m.role, m.text, m.parent_id) for m in found.record.messages] == [
        ("user", "Where is Uppsala?", None),
        ("assistant", "Let me look.\n\nIn **Sweden**.", "q"),
        ("user", "And this?", None),
    ]
    assert found.record.leaf_id == "a" and found.record.messages[1].model == "gpt-4o"
    assert +found.notes == {"images, files or sounds": 1, "messages of tools or the system": 2}


def test_a_conversation_of_open_webui_keeps_its_versions_and_its_reasoning():
    record = sources.read(json.dumps(open_webui()).encode()).record
    assert [(m.text, m.reasoning, m.parent_id) for m in record.messages] == [
        ("Where?", "", None),
        ("In Sweden.", "Hm.", "1"),
        ("I do not know.", "", "1"),
    ]
    assert record.is_archived and record.leaf_id == "2"


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b'{"mapping": 7}',
        b'{"mapping": {}, "title": "x"}',
        b'{"id": "x", "messages": [{"id": "1", "role": "root", "text": ""}]}',
        b'{"id": "x", "chat": {"history": {"messages": []}}}',
        b'{"mapping": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b'{"a": "\xff"}',
    ],
)
def test_what_is_no_conversation_gets_a_sentence(data):
    with pytest.raises(sources.SourceError, match=r"\.$"):
        sources.read(data)


def test_messages_in_a_circle_end():
    mapping = {"x": gpt_node("y", "user", "x"), "y": gpt_node("x", "user", "y")}
    assert len(sources.read(json.dumps(chatgpt(**mapping)).encode()).record.messages) == 3


# Rows

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30)
times = st.datetimes(datetime(2000, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))


@st.composite
def summaries(draw, number, moment):
    """The first one, one that is built on it, and one that was written again."""
    facts = st.builds(Fact, text=st.text("abc 1", min_size=1, max_size=9), is_pinned=st.booleans())
    return [
        SummaryRecord(
            id=f"s{place}",
            up_to_id=str(draw(st.integers(0, number - 1))),
            facts=KeyFacts(names=tuple(draw(st.lists(facts, min_size=1, max_size=3)))),
            created_at=moment + timedelta(seconds=place),
            previous_id="s0" if place else None,
            num_messages=draw(st.integers(0, 9)),
            tokens_before=draw(st.integers(0, 999)),
            tokens_after=draw(st.integers(0, 99)),
            model="starter",
            edited_at=draw(st.none() | times),
            is_undone=draw(st.booleans()),
        )
        for place in range(draw(st.integers(0, 3)))
    ]


@st.composite
def conversations(draw):
    number = draw(st.integers(1, 6))
    messages, moments = [], sorted(draw(st.lists(times, min_size=number, max_size=number, unique=True)))
    for place, moment in enumerate(moments):
        parent = draw(st.none() | st.integers(0, place - 1)) if place else None
        role = draw(st.sampled_from(["user", "assistant"]))
        messages.append(
            MessageRecord(
                id=str(place),
                parent_id=None if parent is None else str(parent),
                role=role,
                text=draw(texts),
                reasoning=draw(texts),
                placement=draw(st.sampled_from(["automatic", "pinned", "expanded", "excluded"])),
                created_at=moment,
                attachments=[AttachmentRecord(file_id="f", mode="cut", cut_at=1)] if role == "user" else [],
                feedback=draw(
                    st.none() | st.builds(FeedbackRecord, value=st.sampled_from([1, -1]), note=st.just("ok"))
                ),
            )
        )
    return ConversationRecord(
        id=draw(st.text(st.characters(codec="ascii"), min_size=1, max_size=8)),
        title=draw(texts),
        is_pinned=draw(st.booleans()),
        folder=draw(st.sampled_from(["", "Trips"])),
        created_at=moments[0],
        updated_at=moments[-1],
        settings=draw(st.dictionaries(st.sampled_from(["temperature", "top_p"]), st.floats(0, 1), max_size=2)),
        leaf_id=str(draw(st.integers(0, number - 1))),
        messages=messages,
        compress_at=draw(st.sampled_from([0, 50, 75, 90])),
        files=[FileRecord(id="f", name="a.txt", text=draw(texts))],
        summaries=draw(summaries(number, moments[-1])),
    )


def without_ids(record):
    """The same names for the same things, whatever their ids."""
    names = {each.id: str(place) for place, each in enumerate([*record.files, *record.messages, *record.summaries])}
    plain = deepcopy(record)
    plain.id, plain.leaf_id = "", names.get(plain.leaf_id)
    for message in plain.messages:
        message.id, message.parent_id = names[message.id], names.get(message.parent_id)
        for attachment in message.attachments:
            attachment.file_id = names[attachment.file_id]
    for file in plain.files:
        file.id = names[file.id]
    for summary in plain.summaries:
        summary.id, summary.previous_id = names[summary.id], names.get(summary.previous_id)
        summary.up_to_id = names[summary.up_to_id]
    return plain


class RoundTrip(TestCase):
    @given(conversations())
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_what_goes_out_comes_in_the_same_and_only_once(self, record):
        alice = User.objects.create_user("alice")
        importing.store(alice, "localllm", record)
        out = exporting.record(Conversation.objects.get())
        assert without_ids(out) == without_ids(record)
        assert importing.store(alice, "localllm", record) == (0, False)
        assert importing.store(alice, "localllm", out) == (0, False), "Nor from the export of what was imported."
        bob = User.objects.create_user("bob")
        importing.store(bob, "localllm", out)
        assert without_ids(exporting.record(Conversation.objects.get(owner=bob))) == without_ids(record)


@pytest.mark.parametrize(("said", "kept"), [(" My\x00  \n trips ", "My trips"), ("x" * 99, "x" * 60)])
def test_the_folder_of_an_imported_chat_is_one_that_could_be_typed(alice, said, kept):
    message = MessageRecord(id="q", role="user", text="Who?")
    importing.store(alice, "localllm", ConversationRecord(id="1", messages=[message], folder=said))
    assert Conversation.objects.get().folder == kept


def test_what_a_conversation_has_grown_by_is_added(alice):
    importing.store(alice, "chatgpt", sources.read(json.dumps(chatgpt()).encode()).record)
    grown = chatgpt(q3=gpt_node("b", "user", "Thanks."))
    assert importing.store(alice, "chatgpt", sources.read(json.dumps(grown).encode()).record) == (1, False)
    assert Message.objects.get(text="Thanks.").parent.text.endswith("**Sweden**.")


def test_a_summary_that_was_made_since_is_added_once_and_one_that_fits_nowhere_is_left_out(alice):
    record = ConversationRecord(id="1", messages=[MessageRecord(id="q", role="user", text="Who?")])
    importing.store(alice, "localllm", record)
    fields = {"facts": KeyFacts(names=(Fact("Maya\x00"),)), "created_at": datetime(2026, 1, 1, tzinfo=UTC)}
    record.summaries = [SummaryRecord(id=id, up_to_id=up_to, **fields) for id, up_to in (("s", "q"), ("t", "?"))]
    for _ in range(2):
        assert importing.store(alice, "localllm", record) == (0, False)
    conversation = Conversation.objects.get()
    assert conversation.summary_on(conversation.path()).text == "Names: Maya"


def test_ids_of_somebody_elses_rows_are_not_taken_over(alice):
    theirs = Conversation.objects.create(owner=User.objects.create_user("bob"))
    question, _ = theirs.send("c1", "Mine.")
    mine = Conversation.objects.create(owner=alice)
    message = MessageRecord(id=str(question.pk), role="user", text="Yours.")
    for id in (str(theirs.pk), str(mine.pk)):
        importing.store(alice, "localllm", ConversationRecord(id=id, messages=[message]))
    assert Message.objects.get(pk=question.pk).text == "Mine."
    assert Message.objects.filter(text="Yours.", conversation__owner=alice).count() == 2


# As a job


@pytest.fixture
async def client(transactional_db):
    client = AsyncClient()
    await client.aforce_login(await database.write(User.objects.create_user, "alice"))
    return client


async def run_jobs():
    runner = JobRunner(look_every_s=0.02)
    await runner.start({importing.KIND: importing.run})
    async with asyncio.timeout(30):
        while await database.read(Job.objects.filter(state__in=Job.LIVE).exists):
            await asyncio.sleep(0.02)
    await runner.drain(5)
    return await database.read(lambda: Job.objects.latest("created_at"))


async def imported(client, data, name="conversations.json"):
    file = io.BytesIO(data)
    file.name = name
    assert (await client.post(reverse("chat:import"), {"file": file})).status_code == 302
    return await run_jobs()


def zipped(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return file.getvalue()


async def test_an_export_of_chatgpt_is_imported_once(client):
    data = zipped(**{"user.json": b"{}", "conversations.json": json.dumps([chatgpt("1"), chatgpt("2")]).encode()})
    first, second = await imported(client, data, "export.zip"), await imported(client, data, "export.zip")
    assert (first.state, first.parameters["report"]["num_added"], first.parameters["report"]["num_messages"]) == (
        "complete",
        2,
        6,
    )
    assert second.parameters["report"]["num_unchanged"] == 2 and await database.read(Conversation.objects.count) == 2
    assert list(importing.folder().iterdir()) == []
    page = (await client.get(reverse("chat:archive-index"))).content.decode()
    assert "2 chats added" in page and "2 already here" in page and "2 images, files or sounds" in page


async def test_what_is_broken_is_skipped_with_its_reason_and_a_cut_is_told(client):
    whole = json.dumps([chatgpt("1"), {"mapping": 7}, open_webui(), chatgpt("2")]).encode()
    job = await imported(client, whole[:-300])
    report = job.parameters["report"]
    assert (job.state, report["num_added"], report["num_skipped"]) == ("complete", 2, 1)
    assert "Conversation 2" in report["skipped"][0] and f"after {len(whole) - 300:,} bytes" in report["cut_off"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[]", "No conversation was found"),
        (b"\x93Hello {} [ {", "neither JSON nor a ZIP file"),
        (zipped(photo=b"x"), "no conversations.json"),
        (zipped(**{"conversations.json": b"[{}]" * 99})[:-20], "damaged or cut off"),
    ],
)
async def test_a_file_that_is_no_export_fails_with_a_sentence(client, data, said):
    job = await imported(client, data)
    assert job.state == "failed" and said in job.error and list(importing.folder().iterdir()) == []


async def test_an_import_that_was_interrupted_goes_on_where_it_was(client):
    alice = await database.read(User.objects.get)
    path = importing.folder() / "file"
    path.write_bytes(json.dumps([chatgpt(str(number)) for number in range(30)]).encode())
    await database.write(importing.begin, alice, path, "c.json")
    runner = JobRunner(look_every_s=0.02)
    await runner.start({importing.KIND: importing.run})
    while not await database.read(Conversation.objects.exists):
        await asyncio.sleep(0.005)
    await runner.drain(5)
    job = await run_jobs()
    assert (job.state, job.parameters["report"]["num_added"]) == ("complete", 30)


async def test_a_large_file_comes_in_parts_and_a_part_twice_is_safe(client):
    data = json.dumps([chatgpt()]).encode()
    address = reverse("chat:import-part", args=["7a3f2c58-2f0c-4f5e-9b0a-6a1c3b1f5d11"])

    async def part(at, end):
        query = f"?at={at}&size={len(data)}&name=c.json"
        response = await client.post(address + query, data[at:end], content_type="application/octet-stream")
        return response.status_code, response.json()

    assert await part(500, 900) == (409, {"at": 0})
    assert [await part(0, 500), await part(0, 500)] == [(200, {"at": 500})] * 2
    last = await part(500, len(data))
    assert "page" in last[1] and await part(500, len(data)) == last
    job = await run_jobs()
    assert job.parameters["report"]["num_added"] == 1 and await database.read(Job.objects.count) == 1


# As files


async def exported(client, name, *args):
    response = await client.get(reverse(f"chat:{name}", args=args))
    body = b"".join([chunk async for chunk in response]) if response.streaming else response.content
    return response["Content-Disposition"], body


async def test_a_chat_and_an_account_go_out_and_come_in_again(client):
    await imported(client, json.dumps([chatgpt("1"), chatgpt("2")]).encode())
    chat = await database.read(Conversation.objects.first)
    name, markdown = await exported(client, "export-markdown", chat.pk)
    assert 'filename="geography-b.md"' in name and "## gpt-4o\n\nLet me look.\n\nIn **Sweden**." in markdown.decode()
    _, one = await exported(client, "export-json", chat.pk)
    assert json.loads(one)["format"] == format.NAME
    _, all = await exported(client, "export-account-json")
    assert len(json.loads(all)["conversations"]) == 2
    _, packed = await exported(client, "export-account-zip")
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.testzip() is None and len(archive.namelist()) == 3
    for data in (one, all, packed):
        assert (await imported(client, data)).parameters["report"]["num_messages"] == 0
    await database.write(lambda: Conversation.objects.all().delete())
    assert (await imported(client, packed)).parameters["report"]["num_added"] == 2


async def test_thumbs_and_files_travel_along(client):
    record = ConversationRecord(
        id="1",
        messages=[
            MessageRecord(id="q", role="user", text="Who?", attachments=[AttachmentRecord(file_id="f")]),
            MessageRecord(id="a", role="assistant", text="Maya.", parent_id="q", feedback=FeedbackRecord(value=1)),
        ],
        files=[FileRecord(id="f", name="../../who.txt", text="Maya")],
    )
    await imported(client, format.encode(record))
    assert (await database.read(Feedback.objects.get)).value == 1
    question = await database.read(lambda: Message.objects.get(role="user").content)
    assert question == "--- who.txt ---\nMaya\n--- end ---\n\nWho?"
