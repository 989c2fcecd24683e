"""Thumbs under answers: given, turned round, taken back, explained, and read by the admin."""

import pytest
from django.contrib.auth.models import User
from django.urls import reverse

from chat.models import Conversation
from localllm.gateway.models import Feedback, LanguageModel, UsageLog

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice():
    return User.objects.create_user("alice", is_staff=True, is_superuser=True)


@pytest.fixture
def reply(alice):
    LanguageModel.objects.create(name="m", path="/m.gguf", size_bytes=1, file_mtime_ns=1, is_default=True)
    _, reply = Conversation.objects.create(owner=alice).send("c1", "Hello")
    reply.end("complete", html="<p>Hi.</p>", text="Hi.", finish_reason="stop")
    return reply


@pytest.fixture
def give(client, alice, reply):
    client.force_login(alice)

    def give(to=reply, **fields):
        path = reverse("chat:feedback", args=[to.conversation_id, to.pk])
        return client.post(path, fields, headers={"HX-Request": "true"})

    return give


def values():
    return list(Feedback.objects.values_list("value", "note"))


def test_a_thumb_is_given_turned_round_and_taken_back(give):
    assert 'aria-pressed="true" aria-label="Good answer"' in give(value=1).content.decode()
    assert values() == [(1, "")]
    give(value=-1)
    assert values() == [(-1, "")]
    give(value=-1)
    assert values() == []


def test_a_note_may_follow_and_is_bounded_and_escaped(give):
    assert 'name="note"' in give(value=-1).content.decode()
    shown = give(note="<b>wrong</b>\x00" + "x" * 2000).content.decode()
    assert "<b>" not in shown and "&lt;b&gt;wrong" in shown
    ((value, note),) = values()
    assert value == -1 and len(note) == 1000 and "\x00" not in note


def test_only_answers_take_thumbs_and_only_up_or_down(give, reply):
    assert give(to=reply.parent, value=1).status_code == 404
    assert give(value=5).status_code == 400
    assert values() == []


def test_the_page_shows_it_and_works_without_a_script(client, give, reply):
    path = reverse("chat:feedback", args=[reply.conversation_id, reply.pk])
    response = client.post(path, {"value": "1"})
    assert response["Location"].endswith(f"#m-{reply.pk}")
    page = client.get(reverse("chat:show", args=[reply.conversation_id])).content.decode()
    assert 'aria-pressed="true" aria-label="Good answer"' in page


def test_the_admin_lists_it_and_the_usage_log_shows_it(client, give, reply):
    give(value=1)
    give(note="Short and right.")
    UsageLog.objects.create(source="chat", model_name="m", finish_reason="stop", message_id=reply.pk)
    assert "Short and right." in client.get(reverse("admin:gateway_feedback_changelist")).content.decode()
    assert "👍" in client.get(reverse("admin:gateway_usagelog_changelist")).content.decode()


def test_the_note_goes_with_the_chat_and_the_thumb_stays(give, reply):
    give(value=1)
    give(note="About my salary.")
    reply.conversation.delete()
    assert values() == [(1, "")]
