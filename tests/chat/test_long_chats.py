"""A conversation of 2,000 messages is shown in parts, and no page reads more of it than it shows."""

import re

import pytest
from django.urls import reverse

from chat import views
from chat.models import Attachment, Conversation, File, Message
from tests.bench.long_chat import long_conversation

pytestmark = pytest.mark.django_db
NUM = 2_000


@pytest.fixture
def chat(alice):
    conversation, ids = long_conversation(alice, NUM)
    conversation.ids = [str(id) for id in ids]
    return conversation


def get(page, chat, name="messages", **query):
    return page.get(reverse(f"chat:{name}", args=[chat.pk]), query).content.decode()


def shown(html, chat):
    """Places of the messages of a page: the first and the last one, and how many there are."""
    places = [chat.ids.index(id) for id in re.findall(r'<article [^>]*data-id="([^"]+)"', html)]
    assert places == list(range(places[0], places[-1] + 1))
    return places[0], places[-1]


def test_it_shows_the_last_messages(page, chat):
    html = get(page, chat, "show")
    assert shown(html, chat) == (NUM - views.WINDOW, NUM - 1)
    assert f"Show earlier messages ({NUM - views.WINDOW})" in html and 'id="later"' not in html


@pytest.mark.parametrize("place", [0, 5, 1000, 1990])
def test_a_jump_shows_the_message_with_its_neighbours_and_no_more(page, chat, place):
    html = get(page, chat, "show", message=chat.ids[place])
    first, last = shown(html, chat)
    assert first <= place <= last and last - first + 1 == views.WINDOW
    assert ('id="earlier"' in html, 'id="later"' in html) == (first > 0, last < NUM - 1)


def test_it_goes_on_before_and_after_what_is_shown(page, chat):
    before = get(page, chat, before=chat.ids[1000])
    assert shown(before, chat) == (1000 - views.WINDOW, 999) and 'id="later"' not in before
    after = get(page, chat, after=chat.ids[1000])
    assert shown(after, chat) == (1001, 1000 + views.WINDOW) and 'id="earlier"' not in after
    assert 'id="later"' not in get(page, chat, after=chat.ids[NUM - 10])


def test_a_part_from_the_middle_is_fetched_again_as_that_part(page, chat):
    html = get(page, chat, **{"from": chat.ids[500], "to": chat.ids[520]})
    assert shown(html, chat) == (500, 520) and f"Show later messages ({NUM - 521})" in html
    assert shown(get(page, chat, **{"from": chat.ids[1950]}), chat) == (1950, NUM - 1)
    assert shown(get(page, chat), chat) == (NUM - views.WINDOW, NUM - 1)


def test_another_version_of_an_old_message_is_shown_where_it_stands(page, chat):
    other = chat.messages.create(
        parent_id=chat.ids[998], role="assistant", status="complete", text="Another way.", created_at=chat.created_at
    )
    Conversation.objects.filter(pk=chat.pk).update(leaf=other)
    url = reverse("chat:select", args=[chat.pk])
    html = page.post(url, {"message": chat.ids[999]}, HTTP_HX_REQUEST="true").content.decode()
    first, last = shown(html, chat)
    assert first <= 999 <= last and last - first + 1 == views.WINDOW


def test_a_long_chat_takes_no_more_queries_than_a_short_one(page, chat, alice, django_assert_max_num_queries):
    short, _ = long_conversation(alice, 4)
    Conversation.objects.bulk_create(Conversation(owner=alice, title=f"Chat {n}") for n in range(1_000))
    with django_assert_max_num_queries(100) as of_short:
        get(page, short, "show")
    with django_assert_max_num_queries(len(of_short)):
        get(page, chat, "show")


def test_it_reads_only_the_texts_that_it_shows(page, chat, django_assert_max_num_queries):
    with django_assert_max_num_queries(100) as queries:
        get(page, chat, "show")
    assert not [each for each in queries if '"chat_message"."text"' in each["sql"] and "IN (" not in each["sql"]]


def test_a_question_at_its_end_is_stored_with_a_bounded_number_of_queries(chat, django_assert_max_num_queries):
    with django_assert_max_num_queries(15):
        question, reply = chat.send("c1", "And the next one?")
    assert str(question.parent_id) == chat.ids[-1] and Message.objects.get(pk=reply.pk).status == "queued"


@pytest.fixture
def with_passages(chat, alice):
    """Each of 300 questions was asked with two passages of a file of its own."""
    files = File.objects.bulk_create(
        File(owner=alice, conversation=chat, name=f"{n}.txt", size_bytes=1, text="A town. " * 20, num_chars=160)
        for n in range(300)
    )
    Attachment.objects.bulk_create(
        Attachment(message_id=chat.ids[2 * n], file=file, place=0, mode="passages") for n, file in enumerate(files)
    )
    for n, each in enumerate(Attachment.objects.order_by("pk")):
        each.passages = [[2 * n + 1, 0, 7], [2 * n + 2, 8, 15]]
        each.save(update_fields=["passages"])
    return chat


def test_only_the_passages_that_are_cited_on_a_page_are_read(page, with_passages, django_assert_max_num_queries):
    Message.objects.filter(pk=with_passages.ids[-1]).update(text="See [7].", html="<p>See [7].</p>")
    with django_assert_max_num_queries(100) as queries:
        html = get(page, with_passages, "show")
    whole = [each["sql"] for each in queries if '"page_starts"' in each["sql"]]
    assert "/passages/7" in html and len(whole) <= 2
    assert with_passages.next_passage_number(with_passages.path()) == 601
