"""A conversation of 2,000 messages as a person has it: the end at once, the rest as they scroll, a jump by search."""

import json
import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import NAME
from tests.browser.test_chat import answers, wait_until_answered

MAKE = """
import json
from django.contrib.auth.models import User
from tests.bench.long_chat import long_conversation
chat, ids = long_conversation(User.objects.get(username="%s"), 2000)
chat.messages.filter(pk=ids[700]).update(text="Where do axolotls live?")
print(json.dumps([str(chat.pk), str(ids[700])]))
"""


@pytest.fixture(scope="module")
def chat(site):
    done = site.manage("shell", "-v0", "-c", MAKE % NAME)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def page(site, chat, open_page):
    page = open_page()
    page.goto(f"{site.url}/chat/{chat[0]}/")
    return page


def messages(page):
    return page.locator("#messages .message")


def scroll(page, to):
    page.evaluate("to => document.querySelector('#scroller').scrollTo({ top: to, behavior: 'instant' })", to)


def top_of(page, message):
    return message.evaluate("element => element.getBoundingClientRect().top")


def test_it_opens_at_its_end_and_loads_earlier_messages_as_the_reader_scrolls_up(page):
    expect(messages(page)).to_have_count(60)
    expect(messages(page).last).to_be_in_viewport()
    first = messages(page).first
    id = first.get_attribute("id")
    scroll(page, 0)
    expect(messages(page)).to_have_count(120, timeout=20_000)
    page.wait_for_timeout(500)  # one part for one scroll, however short the way
    expect(messages(page)).to_have_count(120)
    expect(page.locator(f"#{id}")).to_be_in_viewport()
    scroll(page, 0)
    expect(messages(page)).to_have_count(180)


def test_search_jumps_to_the_place_and_scrolling_down_leads_on(page, chat):
    page.get_by_label("Search chats").fill("axolotls")
    page.locator(".snippet").click()
    found = page.locator(f"#m-{chat[1]}")
    expect(found).to_be_in_viewport()
    expect(found).to_contain_text("Where do axolotls live?")
    num = messages(page).count()
    assert num < 200
    scroll(page, 10**7)
    expect(messages(page)).to_have_count(num + 60)


def test_a_question_asked_from_the_middle_is_shown_with_its_answer(page, chat):
    page.goto(f"{page.url}?message={chat[1]}#m-{chat[1]}")
    page.get_by_label("Message", exact=True).fill("Who are you?")
    page.keyboard.press("Enter")
    expect(page.locator("#later")).to_have_count(0)
    wait_until_answered(page)
    expect(messages(page)).to_have_count(60)
    expect(messages(page).nth(-2)).to_contain_text("Who are you?")
    expect(answers(page).last).to_be_in_viewport()


def test_the_button_to_the_latest_message_leaves_the_middle(page, chat):
    page.goto(f"{page.url}?message={chat[1]}#m-{chat[1]}")
    page.get_by_role("button", name="Jump to the latest message").click()
    expect(page.locator("#later")).to_have_count(0)
    expect(messages(page).last).to_be_in_viewport()


def test_the_end_that_was_asked_for_comes_though_the_page_looks_for_news_meanwhile(page, chat):
    page.goto(f"{page.url}?message={chat[1]}#m-{chat[1]}")
    expect(page.locator("#ledger")).to_contain_text("tokens", timeout=20_000)
    held = []
    page.route(re.compile(r"/messages\?"), lambda route: held.append(route))
    page.get_by_role("button", name="Jump to the latest message").click()
    page.evaluate("document.dispatchEvent(new Event('messages-changed'))")
    page.wait_for_timeout(200)
    for route in held:
        route.continue_()
    expect(page.locator("#later")).to_have_count(0)
