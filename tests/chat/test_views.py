"""The pages of the chat, as a browser without scripts and as htmx see them."""

import asyncio
import uuid

import pytest
from django.contrib.auth.models import User
from django.test import AsyncClient
from django.urls import reverse

from chat import views
from chat.models import Conversation, Message
from localllm.gateway.models import LanguageModel
from schemas_app.models import Schema

pytestmark = pytest.mark.django_db
HTMX = {"HTTP_HX_REQUEST": "true"}


@pytest.fixture
def model():
    return LanguageModel.objects.create(
        name="tiny",
        title="Tiny",
        path="/m.gguf",
        size_bytes=1,
        file_mtime_ns=1,
        is_default=True,
        is_starter=True,
        temperature=0.35,
        system_prompt="Be brief.",
    )


@pytest.fixture
def conversation(alice, model):
    conversation = Conversation.objects.create(owner=alice)
    _, reply = conversation.send("c1", "Where is <Uppsala>?")
    reply.append("In **Sweden**.")
    reply.end("complete", html="<p>In <strong>Sweden</strong>.</p>", finish_reason="stop")
    return conversation


def url(name, conversation, *args):
    return reverse(f"chat:{name}", args=[conversation.pk, *args])


def html(response):
    return response.content.decode()


def test_it_greets_with_the_model_and_suggestions(page, model):
    text = html(page.get("/"))
    assert "You talk to <strong>Tiny</strong>" in text
    assert "What can you do?" in text


def test_it_offers_a_real_model_only_while_there_is_but_the_starter(page, model):
    assert "Get a model that fits this machine" in html(page.get("/"))
    LanguageModel.objects.create(name="big", path="/b.gguf", size_bytes=1, file_mtime_ns=1)
    assert "Get a model that fits this machine" not in html(page.get("/"))


def test_it_tells_how_to_get_a_model_when_there_is_none(page):
    assert "There is no model yet." in html(page.get("/"))


def test_it_shows_a_conversation_with_its_text_escaped(page, conversation):
    text = html(page.get(url("show", conversation)))
    assert "Where is &lt;Uppsala&gt;?</div>" in text
    assert "<p>In <strong>Sweden</strong>.</p>" in text


def test_it_marks_a_live_reply_and_shows_what_is_written_of_it(page, conversation):
    _, reply = conversation.send("c2", "And?")
    reply.append("One.\n\nTwo\nand")
    text = html(page.get(url("message", conversation, reply.pk)))
    assert "data-live" in text
    assert "<p>One.</p>" in text and '<div class="tail" data-tail>Two\nand</div>' in text


OUTCOMES = {
    "stopped": "You stopped this answer.",
    "interrupted": "This answer was not finished.",
    "failed": "The model is gone.",
}


@pytest.mark.parametrize("status", OUTCOMES)
def test_it_keeps_the_text_of_a_reply_that_was_cut_off_and_offers_to_go_on(page, conversation, status):
    Message.objects.filter(role="assistant").update(status=status, error="The model is gone.")
    text = html(page.get(url("show", conversation)))
    assert "<strong>Sweden</strong>" in text
    assert 'data-action="continue"' in text and "Try again" in text
    assert [words for words in OUTCOMES.values() if words in text] == [OUTCOMES[status]]


def test_it_says_why_an_answer_ends_early(page, conversation):
    Message.objects.filter(role="assistant").update(finish_reason="length")
    text = html(page.get(url("show", conversation)))
    assert "The answer reached its length limit or the end of the context window." in text
    assert 'data-action="continue"' in text and "Try again" not in text


@pytest.mark.parametrize("name", ["show", "messages", "menu", "rename", "move-to-folder", "delete", "settings"])
def test_it_hides_what_belongs_to_somebody_else(client, conversation, name):
    client.force_login(User.objects.create_user("bob"))
    assert client.get(url(name, conversation)).status_code == 404


@pytest.mark.parametrize(
    "name", ["rename", "delete", "pin", "archive", "move-to-folder", "select", "model", "settings"]
)
def test_it_changes_nothing_that_belongs_to_somebody_else(client, conversation, name):
    client.force_login(User.objects.create_user("bob"))
    before = Conversation.objects.values().get()
    assert client.post(url(name, conversation), {"title": "Mine", "model": "tiny", "folder": "Mine"}).status_code == 404
    assert Conversation.objects.values().get() == before


def test_it_never_answers_a_message_of_another_conversation(page, conversation, alice):
    other = Conversation.objects.create(owner=alice)
    assert page.get(url("message", other, conversation.leaf_id)).status_code == 404
    assert page.post(url("select", other), {"message": conversation.leaf_id}).status_code == 404


def test_it_does_not_know_a_conversation_that_never_was(page, model):
    assert page.get(reverse("chat:show", args=[uuid.uuid4()])).status_code == 404


def test_it_switches_between_versions(page, conversation):
    first = conversation.leaf
    second = conversation.regenerate(first)
    second.end("complete", html="<p>Elsewhere.</p>")
    assert "2/2" in html(page.get(url("show", conversation)))
    text = html(page.post(url("select", conversation), {"message": first.pk}, **HTMX))
    assert "1/2" in text and "Sweden" in text and "Elsewhere" not in text


def test_it_renames(page, conversation):
    assert 'value="Where is &lt;Uppsala&gt;?"' in html(page.get(url("rename", conversation)))
    page.post(url("rename", conversation), {"title": "Cities"})
    assert Conversation.objects.get().title == "Cities"


def test_it_pins_and_archives(page, conversation):
    page.post(url("pin", conversation))
    assert "Pinned" in html(page.get("/chats", **HTMX))
    page.post(url("archive", conversation))
    assert "Uppsala" not in html(page.get("/chats", **HTMX))
    assert "Uppsala" in html(page.get("/chats?archived=1", **HTMX))


def test_it_moves_a_chat_into_a_folder_and_out_of_it(page, conversation):
    page.post(url("move-to-folder", conversation), {"folder": "Trips"})
    text = html(page.get(url("move-to-folder", conversation), **HTMX))
    assert 'value="Trips"' in text and '<option value="Trips">' in text
    page.post(url("move-to-folder", conversation), {"folder": ""})
    assert Conversation.objects.get().folder == ""


def test_it_renames_a_folder_that_one_has(page, conversation):
    conversation.move_to_folder("a/b & <c>")
    Conversation.objects.create(owner=User.objects.create_user("bob"), folder="Work")
    address = reverse("chat:rename-folder")
    listed = html(page.get("/chats", **HTMX))
    assert f'href="{address}?name=a%2Fb%20%26%20%3Cc%3E"' in listed and "<c>" not in listed
    assert 'value="a/b &amp; &lt;c&gt;"' in html(page.get(address, {"name": "a/b & <c>"}))
    assert page.post(address, {"name": "Work", "folder": "Mine"}).status_code == 404
    assert page.post(address, {"name": "a/b & <c>", "folder": "Trips"}).status_code == 302
    assert set(Conversation.objects.values_list("folder", flat=True)) == {"Trips", "Work"}


def test_it_asks_again_where_the_name_of_a_folder_is_too_long(page, conversation):
    long = "x" * 61
    for request, status in (({}, 400), (HTMX, 200)):
        response = page.post(url("move-to-folder", conversation), {"folder": long}, **request)
        assert response.status_code == status and "at most 60. Shorten it." in html(response)
        assert f'value="{long}"' in html(response)
    assert Conversation.objects.get().folder == ""


def test_it_lists_each_chat_once_pinned_in_a_folder_or_by_day(page, alice, monkeypatch):
    monkeypatch.setattr(views, "SIDEBAR", 2)
    for number in range(4):
        for fields in ({}, {"folder": "Trips"}, {"folder": "Archive", "is_archived": True}):
            Conversation.objects.create(owner=alice, title=f"chat-{number}", **fields)
    Conversation.objects.create(owner=alice, title="chat-4", folder="Trips", is_pinned=True)
    Conversation.objects.create(owner=alice, title="chat-5", folder="a")

    def listed(query):
        context = page.get(f"/chats?{query}", **HTMX).context
        return [(group.name, len(group.chats)) for group in context["groups"]], context["next_page"]

    assert listed("") == ([("Pinned", 1), ("a", 1), ("Trips", 4), ("Today", 1)], 2)
    assert listed("pages=3") == ([("Pinned", 1), ("a", 1), ("Trips", 4), ("Today", 4)], None)
    assert listed("archived=1") == ([("Today", 2)], 2)


def test_the_folder_of_the_open_chat_is_open(page, conversation, alice):
    conversation.move_to_folder("Trips")
    Conversation.objects.create(owner=alice, folder="Work")
    text = html(page.get(url("show", conversation)))
    assert 'data-folder="Trips" open' in text and 'data-folder="Work">' in text


def test_a_hit_tells_its_folder(page, conversation):
    conversation.move_to_folder("Trips")
    assert "Trips" in html(page.get("/chats", {"q": "swed"}, **HTMX))


def test_it_finds_a_message_and_leads_to_it(page, conversation):
    text = html(page.get("/chats", {"q": "swed"}, **HTMX))
    assert "<mark>Sweden</mark>" in text
    assert f"?message={conversation.leaf_id}#m-{conversation.leaf_id}" in text


def test_it_shows_the_branch_of_a_message_that_is_jumped_to(page, conversation):
    first = conversation.leaf
    conversation.regenerate(first).end("complete", html="<p>Elsewhere.</p>")
    text = html(page.get(url("show", conversation), {"message": first.pk}))
    assert "<strong>Sweden</strong>" in text and "Elsewhere" not in text


def test_it_shows_inherited_settings_as_placeholders(page, conversation):
    text = html(page.get(url("settings", conversation), **HTMX))
    assert 'placeholder="0.35"' in text and 'placeholder="Be brief."' in text


def test_it_saves_settings_and_an_empty_one_inherits_again(page, conversation):
    page.post(url("settings", conversation), {"temperature": "0.1", "system_prompt": "Rhyme."}, **HTMX)
    conversation.refresh_from_db()
    assert (conversation.temperature, conversation.system_prompt) == (0.1, "Rhyme.")
    page.post(url("settings", conversation), {"temperature": "", "system_prompt": ""}, **HTMX)
    conversation.refresh_from_db()
    assert (conversation.temperature, conversation.system_prompt) == (None, "")


@pytest.mark.parametrize("setting", ["temperature=-1", "top_p=1.5", "max_tokens=0", "seed=x"])
def test_it_refuses_settings_out_of_range(page, conversation, setting):
    name, value = setting.split("=")
    text = html(page.post(url("settings", conversation), {name: value}, **HTMX))
    assert "has-error" in text
    conversation.refresh_from_db()
    assert getattr(conversation, name) is None


def test_it_chooses_another_model_for_one_chat(page, conversation):
    LanguageModel.objects.create(name="big", path="/b.gguf", size_bytes=1, file_mtime_ns=1)
    page.post(url("model", conversation), {"model": "big"})
    assert Conversation.objects.get().resolved_model().name == "big"


def test_it_shows_the_end_of_a_long_conversation_and_more_when_asked(page, conversation):
    parent = conversation.leaf
    for number in range(views.WINDOW + 5):
        parent = conversation.messages.create(parent=parent, role="user", text=f"n{number}.", status="complete")
    Conversation.objects.update(leaf=parent)
    text = html(page.get(url("show", conversation)))
    assert "Show earlier messages (7)" in text and "n5." in text and "n4." not in text
    first_shown = Message.objects.get(text="n5.")
    text = html(page.get(url("messages", conversation), {"before": first_shown.pk}))
    assert "n4." in text and "n5." not in text and "Show earlier" not in text


def test_it_refetches_from_the_first_message_that_is_shown(page, conversation):
    text = html(page.get(url("messages", conversation), {"from": conversation.leaf_id}))
    assert "Sweden" in text and "Uppsala" not in text


@pytest.mark.parametrize("query", ["?pages=x", "?pages=99999999", "?pages=-1", "?q=%00", "?archived"])
def test_it_takes_any_query_for_the_sidebar(page, conversation, query):
    assert page.get(f"/chats{query}", **HTMX).status_code == 200


def test_it_sorts_chats_by_the_readers_own_day(page, conversation):
    page.cookies["zone"] = "../../etc/passwd"
    assert "Today" in html(page.get("/chats", **HTMX))


@pytest.mark.django_db(transaction=True)
async def test_it_starts_a_conversation_once_however_often_the_form_is_sent(alice, model):
    browser = AsyncClient()
    await browser.aforce_login(alice)
    form = {"text": "Hello", "cid": "c9", "model": "tiny"}
    first = await browser.post("/chat/", form)
    again = await browser.post("/chat/", form)
    assert first.status_code == again.status_code == 303
    assert first["Location"] == again["Location"]
    assert await Conversation.objects.acount() == 1
    while await Message.objects.filter(status__in=Message.LIVE).aexists():
        await asyncio.sleep(0.02)  # it fails: the file of this model does not exist


@pytest.mark.django_db(transaction=True)
async def test_it_keeps_the_text_when_a_conversation_cannot_start(alice, model):
    browser = AsyncClient()
    await browser.aforce_login(alice)
    response = await browser.post("/chat/", {"text": "   ", "cid": "c9"})
    assert response.status_code == 400
    assert "The message is empty." in html(response)


@pytest.mark.django_db(transaction=True)
async def test_it_deletes_a_conversation_after_a_question(alice, model):
    conversation = await Conversation.objects.acreate(owner=alice, title="Old")
    browser = AsyncClient()
    await browser.aforce_login(alice)
    assert "Delete this chat?" in html(await browser.get(url("delete", conversation)))
    assert await Conversation.objects.aexists()
    assert (await browser.post(url("delete", conversation))).status_code == 302
    assert not await Conversation.objects.aexists()


@pytest.fixture
def schema(alice):
    schema = Schema.objects.create(owner=alice, slug="person", name="Person")
    schema.add_version(text='{"type": "object"}')
    return schema


@pytest.fixture
def structured(conversation, schema):
    """An answer by the schema, valid at the second attempt, and not sure of one value."""
    conversation.choose_schema(schema.pk)
    _, reply = conversation.send("c2", "Maya")
    fields = {"/name": {"probability": 0.2, "source": None}, "/age": {"probability": None, "source": None}}
    guarantee = {"guarantee": "repaired", "unenforced": [], "attempts": 2, "fields": fields}
    reply.end("complete", html="", text='{"name": "<Maya>"}', guarantee=guarantee, finish_reason="closed")
    return reply


def test_it_shows_data_as_a_form_and_as_json_with_what_vouches_for_it(page, conversation, structured):
    text = html(page.get(url("message", conversation, structured.pk)))
    assert "data-view" in text and "&lt;Maya&gt;" in text and "<Maya>" not in text
    assert "Person v1" in text and "Valid at attempt 2, then checked. The length limit ended it early" in text
    assert "Check this:</strong> the model was not sure of the value" in text
    assert url("data", conversation, structured.pk) in text


def test_it_gives_complete_data_as_a_file(page, conversation, structured):
    response = page.get(url("data", conversation, structured.pk))
    assert response.json() == {"name": "<Maya>"}
    assert response["Content-Disposition"] == 'attachment; filename="person.json"'
    structured.conversation.messages.filter(pk=structured.pk).update(status="stopped")
    assert page.get(url("data", conversation, structured.pk)).status_code == 404


def test_data_stay_data_when_their_schema_is_gone(page, conversation, structured, schema):
    schema.delete()
    assert "data-view" in html(page.get(url("message", conversation, structured.pk)))


def test_the_composer_and_the_settings_name_the_schema(page, conversation, structured):
    text = html(page.get(url("show", conversation)))
    assert text.count(">Person</") == 2 and 'aria-label="Schema of the answers: Person"' in text


def test_the_first_page_takes_a_schema_from_its_address_if_one_may_see_it(page, model, schema):
    own = f"/?schema={schema.pk}"
    assert "Schema of the answers: Person" in html(page.get(own))
    Schema.objects.update(owner=User.objects.create_user("bob"))
    for address in (own, "/?schema=x"):
        assert "Schema of the answers: none" in html(page.get(address))


@pytest.mark.django_db(transaction=True)
async def test_a_first_message_with_a_schema_that_is_not_ones_own_is_refused_and_kept(alice, model, schema):
    await Schema.objects.aupdate(owner=await User.objects.acreate(username="bob"))
    browser = AsyncClient()
    await browser.aforce_login(alice)
    response = await browser.post("/chat/", {"text": "Maya", "cid": "c", "schema": schema.pk})
    assert response.status_code == 400 and "no longer shared with you" in html(response) and "Maya" in html(response)
    assert not await Conversation.objects.aexists()


def test_the_picker_lists_what_one_may_see_and_searches(page, alice, schema):
    bobs = Schema.objects.create(owner=User.objects.create_user("bob"), slug="secret", name="Secret")
    bobs.add_version(text="{}")
    text = html(page.get(reverse("schemas:picker"), {"schema": schema.pk}))
    assert f'data-schema="{schema.pk}" data-name="Person" aria-current="true"' in text and "Secret" not in text
    assert "Person" in html(page.get(reverse("schemas:picker"), {"q": "pers"}))
    assert "No schema matches" in html(page.get(reverse("schemas:picker"), {"q": "secret"}))


def test_it_folds_what_a_model_thought(page, conversation):
    _, reply = conversation.send("c2", "Why?")
    reply.append("So.", reasoning="Hm, <why>?")
    reply.end("complete", html="<p>So.</p>", reasoning_ms=2500)
    text = html(page.get(url("message", conversation, reply.pk)))
    assert "<summary>Thought for 2.5 s</summary>" in text and "Hm, &lt;why&gt;?" in text
    assert "<details" not in html(page.get(url("message", conversation, reply.parent_id)))
