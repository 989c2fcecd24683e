"""What is sent of a conversation: the summary, and for each message whether it is in full, summarised or left out."""

import pytest
from django.contrib.auth.models import User

from chat.context.plan import RECAP
from chat.models import Conversation, ConversationError, Message, Summary
from localllm.gateway.models import LanguageModel
from localllm.inference.compression import Fact, KeyFacts

FACTS = KeyFacts(names=(Fact("Maya", is_pinned=True),), narrative=(Fact("A trip was planned."),))
SAYING = "Sure, the ferry to Utö leaves at ten and carries forty people on any day. "


# For the shell of a server: makes a chat, and gives its id
FERRY = """
from django.contrib.auth.models import User
from chat.models import Conversation
def ferry(owner, num_pairs):
    chat = Conversation.objects.create(owner=User.objects.get(username=owner), title="The ferry to Utö")
    for number in range(num_pairs):
        _, reply = chat.send(f"{chat.pk} {number}", f"Question {number}: when does the ferry leave on day {number}?")
        text = f"On day {number} the ferry to Utö leaves at ten and carries forty people."
        reply.append(text)
        reply.end("complete", html=f"<p>{text}</p>", finish_reason="stop", model_name="starter")
    return chat.pk
"""


def chat(num_pairs, *, length=1, **settings):
    """A conversation of questions and answers of one or more sentences each."""
    owner, _ = User.objects.get_or_create(username="alice")
    conversation = Conversation.objects.create(owner=owner, **settings)
    for number in range(num_pairs):
        _, reply = conversation.send(f"c{number}", f"Question {number}: when does the ferry leave?")
        reply.append(f"{number}. " + SAYING * length)
        reply.end("complete", html="", finish_reason="stop")
    return Conversation.objects.select_related("owner").get(pk=conversation.pk)


def summarised(conversation, up_to, facts=FACTS, **fields):
    summary = Summary(conversation=conversation, up_to=up_to, num_messages=2, tokens_before=90, **fields)
    summary.say(facts, 10)
    summary.save()
    return summary


def in_full(conversation):
    """The beginnings of what is sent after system prompt and summary."""
    return [turn.content.split(":")[0].split(".")[0] for turn in conversation.context().messages[3:]]


@pytest.fixture
def trip(db):
    LanguageModel.objects.create(
        name="m", path="/m.gguf", size_bytes=1, file_mtime_ns=1, is_default=True, system_prompt="Be brief."
    )
    conversation = chat(3)
    return conversation


def test_a_summary_stands_between_the_system_prompt_and_the_turns_in_full(trip):
    summary = summarised(trip, trip.branch()[1])
    messages = trip.context().messages
    assert [m.role for m in messages] == ["system", "user", "assistant", "user", "assistant", "user", "assistant"]
    assert (messages[1].content, messages[2].content) == (RECAP, summary.text)
    assert messages[3].content.startswith("Question 1")


def test_pinned_and_expanded_turns_stay_in_full_and_excluded_ones_are_left_out(trip):
    summarised(trip, trip.branch()[3])
    assert in_full(trip) == ["Question 2", "2"]
    for at, placement in enumerate(("pinned", "automatic", "automatic", "expanded", "excluded")):
        Message.objects.filter(pk=trip.branch()[at].pk).update(placement=placement)
    assert in_full(trip) == ["Question 0", "1", "2"]


def test_the_question_that_is_asked_is_always_sent(trip):
    _, reply = trip.send("new", "And back?")
    Message.objects.filter(pk=reply.parent_id).update(placement="excluded")
    assert trip.request_for(reply).messages[-1].content == "And back?"


def test_a_summary_holds_on_its_own_branch_only(trip):
    summarised(trip, trip.branch()[3])
    trip.edit("other", trip.branch()[2], "Something else?")
    assert trip.summary_on(trip.path()) is None
    trip.select(trip.messages.get(text__startswith="Question 2"))
    assert trip.summary_on(trip.path()) is not None


def test_undoing_a_summary_brings_back_the_one_before_and_then_the_messages(trip):
    first = summarised(trip, trip.branch()[1])
    second = summarised(trip, trip.branch()[3], previous=first)
    assert trip.context().summary == second
    second.undo()
    assert trip.context().summary == first
    first.undo()
    assert trip.context().summary is None and len(trip.context().in_full) == 6


def test_of_two_summaries_made_at_once_the_first_one_holds(trip):
    first = summarised(trip, trip.branch()[1])
    late = Summary(conversation=trip, up_to=trip.branch()[1], num_messages=2, tokens_before=90)
    late.say(FACTS, 10)
    assert trip.keep_summary(late, based_on=None) == first
    assert trip.summaries.count() == 1


def test_an_empty_summary_is_refused(trip):
    summary = summarised(trip, trip.branch()[1])
    with pytest.raises(ConversationError, match="empty"):
        summary.edit(KeyFacts(), 0, trip.owner)


# Pages


@pytest.fixture
def page(client, trip):
    client.force_login(trip.owner)
    return client


def test_the_messages_that_a_summary_stands_for_are_marked_and_the_summary_follows_them(page, trip):
    summary = summarised(trip, trip.branch()[1])
    html = page.get(f"/chat/{trip.pk}/messages").content.decode()
    assert html.count("data-covered") == 2
    assert html.index("Question 0") < html.index(f'id="s-{summary.pk}"') < html.index("Question 1")


def test_what_a_summary_says_is_shown_as_text(page, trip):
    summarised(trip, trip.branch()[1], KeyFacts(narrative=(Fact("<script>alert(1)</script>"),)))
    html = page.get(f"/chat/{trip.pk}/").content.decode()
    assert "&lt;script&gt;alert(1)" in html and "<script>alert" not in html


@pytest.mark.django_db(transaction=True)
def test_a_fact_is_pinned_and_unpinned_on_the_page(page, trip):
    summary = summarised(trip, trip.branch()[1])
    address = f"/chat/{trip.pk}/summaries/{summary.pk}/pin"
    page.post(address, {"fact": "A trip was planned.", "pinned": "1"})
    page.post(address, {"fact": "Maya"})
    summary.refresh_from_db()
    assert [fact.text for fact in summary.facts.carried().all()] == ["A trip was planned."]
    assert summary.edited_by == trip.owner


@pytest.mark.django_db(transaction=True)
def test_a_summary_of_another_conversation_is_not_found(page, trip):
    other = Conversation.objects.create(owner=trip.owner)
    summary = summarised(trip, trip.branch()[1])
    assert page.post(f"/chat/{other.pk}/summaries/{summary.pk}/undo").status_code == 404
    assert page.post(f"/chat/{trip.pk}/summaries/{summary.pk}/undo").status_code == 204


def test_the_threshold_is_a_setting_of_the_chat(page, trip):
    page.post(f"/chat/{trip.pk}/settings", {"compress_at": "90"})
    trip.refresh_from_db()
    assert trip.compress_at == 90
    page.post(f"/chat/{trip.pk}/settings", {"temperature": "0.5"})
    trip.refresh_from_db()
    assert trip.compress_at == 90 and trip.temperature == 0.5


def test_the_admin_sees_what_was_compressed_and_cannot_change_it(admin_client, trip):
    summary = summarised(trip, trip.branch()[1], model_name="starter", edited_by=trip.owner)
    html = admin_client.get("/admin/chat/summary/").content.decode()
    assert "90" in html and "89%" in html and "starter" in html and "alice" in html
    assert "A trip was planned." in admin_client.get(f"/admin/chat/summary/{summary.pk}/change/").content.decode()
    assert admin_client.post(f"/admin/chat/summary/{summary.pk}/change/", {"text": "x"}).status_code == 403
    assert admin_client.post(f"/admin/chat/summary/{summary.pk}/delete/", {"post": "yes"}).status_code == 403
