"""Search finds what its owner wrote and was answered, and nothing else."""

import pytest
from django.contrib.auth.models import User

from chat import search
from chat.models import Conversation

pytestmark = pytest.mark.django_db


def chat(owner, *texts, title="", status="complete"):
    conversation = Conversation.objects.create(owner=owner, title=title)
    for text in texts:
        conversation.messages.create(role="user", text=text, status=status)
    return conversation


def found(user, query):
    return [hit.snippet for hit in search.search(user, query)]


def test_it_finds_a_word_in_a_message_and_marks_it(alice):
    message = chat(alice, "The quick brown fox").messages.get()
    (hit,) = search.search(alice, "brown")
    assert hit.message_id == message.pk
    assert hit.snippet == "The quick <mark>brown</mark> fox"


def test_it_finds_titles_before_messages(alice):
    chat(alice, "about walnuts")
    chat(alice, title="Walnuts at home")
    assert found(alice, "walnuts") == ["<mark>Walnuts</mark> at home", "about <mark>walnuts</mark>"]


def test_it_takes_the_last_word_as_unfinished(alice):
    chat(alice, "Uppsala is a city")
    assert found(alice, "city upps") == ["<mark>Uppsala</mark> is a <mark>city</mark>"]


def test_it_ignores_case_and_accents(alice):
    chat(alice, "Café au LAIT")
    assert found(alice, "cafe lait") == ["<mark>Café</mark> au <mark>LAIT</mark>"]


def test_it_never_finds_what_belongs_to_somebody_else(alice):
    chat(User.objects.create_user("bob"), "secret plans", title="secret")
    assert found(alice, "secret") == []


def test_it_escapes_what_is_not_a_mark(alice):
    chat(alice, f"<img src=x onerror=alert(1)> {search.OPEN} needle")
    assert found(alice, "needle") == ["&lt;img src=x onerror=alert(1)&gt;  <mark>needle</mark>"]


@pytest.mark.parametrize(
    "query", ['"', "'", "a OR", "NEAR(", "text:x", "-a", "*", "(", "", "\0", "{}^", 'x" OR "1', "%"]
)
def test_it_takes_any_input_as_words(alice, query):
    chat(alice, "nothing of that")
    assert found(alice, query) == []


def test_it_leaves_out_a_reply_until_it_is_final(alice):
    conversation = chat(alice, "half an answer", status="streaming")
    assert found(alice, "half") == []
    conversation.messages.get().end("complete", html="")
    assert found(alice, "half") == ["<mark>half</mark> an answer"]


def test_it_forgets_the_old_text_of_a_reply_that_goes_on(alice):
    conversation = chat(alice, "first part", status="stopped")
    conversation.messages.update(status="queued")
    assert found(alice, "first") == []
    conversation.messages.update(status="complete", text="first part and second")
    assert found(alice, "first second") == ["<mark>first</mark> part and <mark>second</mark>"]


def test_it_follows_a_rename(alice):
    conversation = chat(alice, title="Old name")
    conversation.title = "Fresh name"
    conversation.save()
    assert found(alice, "old") == []
    assert found(alice, "fresh") == ["<mark>Fresh</mark> name"]


def test_it_forgets_a_deleted_conversation(alice):
    chat(alice, "gone soon", title="gone").delete()
    assert found(alice, "gone") == []


def test_it_finds_by_containment_on_other_databases(alice):
    chat(alice, "The quick <b>brown</b> fox")
    (hit,) = search._containing(alice, ["row", "qui"])
    assert hit.snippet == "The <mark>qui</mark>ck &lt;b&gt;b<mark>row</mark>n&lt;/b&gt; fox"
