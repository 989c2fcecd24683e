"""The verbs on conversations: a tree of messages that forgets nothing."""

import pytest
from django.contrib.auth.models import User

from chat.models import Conversation, ConversationError, Message
from localllm.gateway.models import LanguageModel
from localllm.inference.types import Usage
from schemas_app.models import Schema

pytestmark = pytest.mark.django_db


@pytest.fixture
def model():
    return LanguageModel.objects.create(
        name="m", path="/m.gguf", size_bytes=1, file_mtime_ns=1, is_default=True, system_prompt="Be brief."
    )


@pytest.fixture
def conversation(model):
    return Conversation.objects.create(owner=User.objects.create(username="alice"))


@pytest.fixture
def schema(conversation):
    schema = Schema.objects.create(owner=conversation.owner, slug="person", name="Person")
    schema.add_version(text='{"type": "object"}', prompt_template="Who? {{ input }}", temperature=0.1, max_tokens=77)
    return schema


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


def test_a_chosen_schema_holds_for_the_messages_to_come_until_changed(conversation, schema):
    conversation.choose_schema(schema.pk)
    _, first = conversation.send("c1", "Maya")
    answered(first)
    _, second = Conversation.objects.get(pk=conversation.pk).send("c2", "Jonas")
    assert first.schema_version == second.schema_version == schema.current
    answered(second)
    conversation.choose_schema(None)
    assert conversation.send("c3", "Hello")[1].schema_version is None


def test_a_reply_written_again_follows_the_newest_version(conversation, schema):
    conversation.choose_schema(schema.pk)
    _, reply = conversation.send("c1", "Maya")
    newest = schema.add_version(text="{}")
    again = conversation.regenerate(answered(reply))
    assert (again.schema_version, reply.schema_version.number) == (newest, 1)


def test_a_schema_of_somebody_else_is_refused_until_it_is_shared(conversation, schema):
    Schema.objects.update(owner=User.objects.create(username="bob"))
    conversation.choose_schema(schema.pk)
    with pytest.raises(ConversationError, match="no longer shared"):
        conversation.send("c1", "Maya")
    assert not conversation.messages.exists()
    assert Conversation.objects.get(pk=conversation.pk).schema is None, "Nothing was changed."
    Schema.objects.update(is_shared=True)
    assert conversation.send("c1", "Maya")[1].schema_version == schema.current


def test_a_question_by_a_schema_is_asked_as_its_version_says(conversation, schema):
    conversation.choose_schema(schema.pk)
    _, reply = conversation.send("c1", "Maya")
    request = conversation.request_for(reply)
    assert request.messages[-1].content == "Who? Maya"
    assert (request.params.temperature, request.params.max_tokens) == (0.1, 77)


def test_a_chat_moves_between_folders_that_exist_while_something_is_in_them(conversation):
    chats = Conversation.objects.owned_by(conversation.owner)
    conversation.move_to_folder("  Trips\x00 \n to  Sweden ")
    assert chats.folders() == ["Trips to Sweden"]
    conversation.move_to_folder("Work")
    assert chats.folders() == ["Work"]
    conversation.move_to_folder(" ")
    assert chats.folders() == []


def test_folders_stand_in_alphabetical_order(conversation):
    for name in ("b", "C", "a"):
        Conversation.objects.create(owner=conversation.owner, folder=name)
    assert Conversation.objects.owned_by(conversation.owner).folders() == ["a", "b", "C"]


def test_a_name_that_is_too_long_for_a_folder_is_refused_in_words(conversation):
    conversation.move_to_folder("x" * 60)
    with pytest.raises(ConversationError, match="has 61 characters; that of a folder has at most 60"):
        conversation.move_to_folder("y" * 61)
    conversation.refresh_from_db()
    assert conversation.folder == "x" * 60


def test_a_folder_is_renamed_joined_and_emptied_and_those_of_others_stay(conversation):
    theirs = Conversation.objects.create(owner=User.objects.create(username="bob"), folder="Trips")
    other = Conversation.objects.create(owner=conversation.owner, folder="Work")
    conversation.move_to_folder("Trips")
    chats = Conversation.objects.owned_by(conversation.owner)
    chats.rename_folder("Trips", "Work")
    assert set(chats.values_list("pk", "folder")) == {(conversation.pk, "Work"), (other.pk, "Work")}
    chats.rename_folder("Work", "")
    chats.rename_folder("", "All")
    assert chats.folders() == []
    theirs.refresh_from_db()
    assert theirs.folder == "Trips"


def test_a_draft_can_be_written_anew(conversation):
    _, reply = conversation.send("c1", "Hello")
    reply.append('{"a": 1}')
    reply.append("[", anew=True)
    reply.append("2]")
    reply.refresh_from_db()
    assert (reply.text, reply.status) == ("[2]", "streaming")


def test_reasoning_is_handed_on_to_go_on_but_is_no_context_of_later_questions(conversation):
    _, reply = conversation.send("c1", "Hello")
    reply.append("", reasoning="Greeted. ")
    reply.append("Hi.", reasoning="So greet.")
    reply.refresh_from_db()
    request = conversation.request_for(reply)
    assert (request.reasoning, request.prefix) == ("Greeted. So greet.", "Hi.")
    reply.end("complete", html="", reasoning_ms=2500)
    request = conversation.request_for(conversation.send("c2", "And?")[1])
    assert [m.content for m in request.messages] == ["Be brief.", "Hello", "Hi.", "And?"] and not request.reasoning
