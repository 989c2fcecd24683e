"""The keys on the sheet of shortcuts, each pressed as the sheet shows it; and what is copied by key and button."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import NAME
from tests.browser.test_chat import answers, begin_long_answer, wait_until_answered

CODE = "def longest(path):\n    return max(open(path).read().split(), key=len)  # `a` < *b*\n"
ANSWER = f"Like this:\n\n```python\n{CODE}```\n\nIt is **short**."
MAKE = """
from chat import markdown
from chat.models import Conversation
from django.contrib.auth.models import User
chat = Conversation.objects.create(owner=User.objects.get(username=%r))
reply = chat.send("c", "How do I find it?")[1]
reply.text, reply.status, reply.finish_reason = %r, "complete", "stop"
reply.html = markdown.render(reply.text)
reply.save()
print(chat.pk)
"""
NAMES = {"Ctrl": "Control", "Esc": "Escape", "↑": "ArrowUp"}


@pytest.fixture(scope="module")
def chat(site):
    """One question and its answer, which holds code."""
    done = site.manage("shell", "-v0", "-c", MAKE % (NAME, ANSWER))
    assert done.returncode == 0, done.stderr
    return f"/chat/{done.stdout.strip()}/"


@pytest.fixture
def page(site, chat, open_page):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.goto(site.url + chat)
    expect(box(page)).to_be_focused()
    expect(page.locator("#ledger")).to_contain_text("of 1024 tokens")  # by now the socket is open too
    return page


def box(page):
    return page.get_by_label("Message", exact=True)


def ways(page, promise):
    """The keys that the sheet names for it: ["?", "Control+/"]."""
    row = page.locator("#shortcuts dl > div").filter(
        has=page.locator("dt", has_text=re.compile(f"^{re.escape(promise)}$"))
    )
    return [
        "+".join(NAMES.get(key, key) for key in way.split()) for way in row.locator("dd").text_content().split(" or ")
    ]


def press(page, promise):
    (keys,) = ways(page, promise)
    page.keyboard.press(keys)


def copied(page):
    expect(page.locator("#toast")).to_have_text("Copied")
    return page.evaluate("navigator.clipboard.readText()")


# What is there once the keys are pressed in the empty message box.
SHOWN = {
    "Search chats": "#search:focus",
    "New chat": "h1:has-text('What is on your mind')",
    "Settings of this chat": "#settings",
    "Choose a prompt (in an empty box)": "#prompts",
    "Edit your last message (in an empty box)": ".editor textarea:focus",
}
STOP, SIDEBAR, LIST = "Stop the answer, close what is open", "Show or hide the sidebar", "This list"
BOX, SEND, NEW_LINE, COPY, COMPRESS = (
    "Go to the message box",
    "Send",
    "New line",
    "Copy the last answer",
    "Summarise older messages",
)


def test_the_sheet_promises_only_what_is_tried_here(page):
    promises = page.locator("#shortcuts dt").all_text_contents()
    assert {*promises} == {*SHOWN, STOP, SIDEBAR, LIST, BOX, SEND, NEW_LINE, COPY, COMPRESS}


@pytest.mark.parametrize("promise", SHOWN)
def test_a_key_leads_to_what_the_sheet_promises(page, promise):
    expect(page.locator(SHOWN[promise])).to_be_hidden()
    press(page, promise)
    expect(page.locator(SHOWN[promise])).to_be_visible()


def test_the_sheet_itself_is_shown_where_nothing_is_written(page):
    box(page).blur()
    sheet = page.get_by_role("dialog", name="Keyboard shortcuts")
    for keys in ways(page, LIST):
        expect(sheet).to_be_hidden()
        page.keyboard.press(keys)
        expect(sheet).to_be_visible()
        press(page, STOP)
    box(page).press("?")
    expect(box(page)).to_have_value("?")


def test_the_sidebar_is_hidden_stays_so_and_comes_back(page):
    sidebar = page.get_by_role("navigation", name="Chats")
    press(page, SIDEBAR)
    expect(sidebar).to_be_hidden()
    page.reload()
    expect(sidebar).to_be_hidden()
    press(page, SIDEBAR)
    expect(sidebar).to_be_visible()


def test_a_message_is_written_in_lines_and_sent(page, site):
    page.goto(site.url)
    page.locator("#search").focus()
    press(page, BOX)
    page.keyboard.type("Hello.")
    press(page, NEW_LINE)
    page.keyboard.type("Who are you?")
    press(page, SEND)
    expect(page.locator(".bubble")).to_have_text("Hello.\nWho are you?", use_inner_text=True)
    wait_until_answered(page)


def test_what_is_open_is_closed_before_the_answer_is_stopped(page, site):
    page.goto(site.url)
    begin_long_answer(page, site)
    page.keyboard.press("Control+.")
    press(page, STOP)
    expect(page.locator("#settings")).to_be_hidden()
    expect(page.locator("[data-live]")).to_have_count(1)
    press(page, STOP)
    expect(answers(page).last).to_contain_text("You stopped this answer.")
    site.go_on()


def test_a_command_of_the_sheet_is_typed(page):
    (command,) = ways(page, COMPRESS)
    page.keyboard.type(command)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("There is nothing to summarise yet")


def test_the_last_answer_is_copied_as_it_was_written(page):
    press(page, COPY)
    assert copied(page) == ANSWER


def test_a_block_of_code_is_copied_without_its_fence(page):
    page.locator(".code").get_by_role("button", name="Copy").click()
    assert copied(page) == CODE
