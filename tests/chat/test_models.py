"""The verbs on conversations: a tree of messages that forgets nothing."""

import pytest
from django.contrib.auth.models import User

from chat.models import Conversation, ConversationError, Message
from localllm.gateway.models import LanguageModel
from localllm.inference.types import Usage

pytestmark = pytest.mark.django_db


@pytest.fixture
def model():
    return LanguageModel.objects.create(
        name="m", path="/m.gguf", size_bytes=1, file_mtime_ns=1, is_default=True, system_prompt="Be brief."
    )


@pytest.fixture
def conversation(model):
    return Conversation.objects.create(owner=User.objects.create(username="alice"))


def answered(reply, text="Yes."):
    reply.append(text)
    reply.end("complete", html=f"<p>{text}</p>", finish_reason="stop")
    reply.refresh_from_db()
    return reply


def test_a_message_makes_a_queued_reply_and_a_title(conversation):
    question, reply = conversation.send("c1", "  Where is Uppsala?  ")
    assert (question.text, reply.status, reply.parent) == ("Where is Uppsala?", "queued", question)
    assert conversation.leaf == reply and conversation.title == "Where is Uppsala?"


def test_sending_the_same_cid_again_changes_nothing(conversation):
    first = conversation.send("c1", "Hello")
    assert conversation.send("c1", "Hello") == first
    assert conversation.messages.count() == 2


def test_the_same_cid_is_safe_even_when_the_answer_has_versions(conversation):
    question, reply = conversation.send("c1", "Hello")
    conversation.regenerate(answered(reply))
    assert conversation.send("c1", "Hello")[0] == question


@pytest.mark.parametrize("text", ["", "  \n ", "\x00"])
def test_an_empty_message_is_refused(conversation, text):
    with pytest.raises(ConversationError, match="empty"):
        conversation.send("c1", text)


def test_a_message_that_is_too_long_is_refused(conversation):
    with pytest.raises(ConversationError, match="200,001 bytes"):
        conversation.send("c1", "x" * 200_001)


def test_a_second_message_waits_for_the_answer_to_the_first(conversation):
    conversation.send("c1", "Hello")
    with pytest.raises(ConversationError, match="still being written"):
        conversation.send("c2", "And?")
    assert conversation.messages.count() == 2


def test_regenerate_keeps_the_first_version_and_shows_the_second(conversation):
    question, reply = conversation.send("c1", "Hello")
    second = conversation.regenerate(answered(reply))
    assert [m.pk for m in conversation.branch()] == [question.pk, second.pk]
    assert (conversation.branch()[1].versions.number, conversation.branch()[1].versions.count) == (2, 2)


def test_select_goes_back_to_a_version_and_down_to_its_newest_end(conversation):
    _, reply = conversation.send("c1", "Hello")
    answered(reply)
    _, deeper = conversation.send("c2", "And?")
    answered(deeper)
    answered(conversation.regenerate(reply))
    conversation.select(reply)
    assert conversation.branch()[-1] == deeper


def test_an_edit_makes_a_branch_and_keeps_the_old_one(conversation):
    question, reply = conversation.send("c1", "Hello")
    answered(reply)
    edited, _ = conversation.edit("c2", question, "Good morning")
    assert [m.text for m in conversation.branch()] == ["Good morning", ""]
    assert edited.parent is None and Message.objects.filter(pk=reply.pk).exists()


def test_only_ones_own_messages_can_be_edited(conversation):
    _, reply = conversation.send("c1", "Hello")
    with pytest.raises(ConversationError, match="own messages"):
        conversation.edit("c2", answered(reply), "No")


def test_a_stopped_reply_can_go_on_and_a_complete_one_cannot(conversation):
    _, reply = conversation.send("c1", "Hello")
    reply.append("Hel")
    reply.end("stopped", html="", finish_reason="cancelled")
    assert conversation.continue_reply(reply).status == "queued"
    with pytest.raises(ConversationError, match="nothing to continue"):
        conversation.continue_reply(answered(reply))


def test_the_final_state_is_written_once(conversation):
    _, reply = conversation.send("c1", "Hello")
    assert reply.end("stopped", html="")
    assert not reply.end("complete", html="") and not reply.append("more")
    reply.refresh_from_db()
    assert (reply.status, reply.text) == ("stopped", "")


def test_the_request_holds_the_branch_the_system_prompt_and_the_text_so_far(conversation):
    _, reply = conversation.send("c1", "Hello")
    answered(reply, "Hi.")
    _, reply = conversation.send("c2", "And?")
    reply.append("Well")
    reply.refresh_from_db()
    request = conversation.request_for(reply)
    assert [(m.role, m.content) for m in request.messages] == [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Hi."),
        ("user", "And?"),
    ]
    assert request.prefix == "Well"


def test_settings_of_the_chat_win_over_those_of_the_model(conversation, model):
    conversation.temperature = 0.0
    sampling = conversation.sampling(model)
    assert (sampling.temperature, sampling.top_p) == (0.0, model.top_p)


def test_a_disabled_model_gives_way_to_the_default_one(conversation, model):
    other = LanguageModel.objects.create(name="o", path="/o.gguf", size_bytes=1, file_mtime_ns=1, is_enabled=False)
    conversation.model = other
    assert conversation.resolved_model() == model


def test_the_account_says_tokens_per_second_and_context_used(conversation):
    _, reply = conversation.send("c1", "Hello")
    usage = Usage(prompt_tokens=30, completion_tokens=11, ttft_s=0.5, duration_s=1.5, window=1024)
    reply.end("complete", html="", usage=usage)
    reply.refresh_from_db()
    assert reply.tokens_per_second == pytest.approx(10) and reply.context_used == 41
