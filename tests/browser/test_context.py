"""The window of a chat as a person sees it: counted while typing, summarised, placed by hand."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import NAME, SHOTS
from tests.browser.test_attachments import pick
from tests.browser.test_chat import send, wait_until_answered
from tests.chat.test_context_plan import FERRY


@pytest.fixture(scope="module")
def chats(request, site):
    """One for each test, of six questions and answers."""
    tests = [item for item in request.session.items if item.module is request.module and "ferry" in item.fixturenames]
    make = f"for _ in range({len(tests)}): print(ferry('{NAME}', num_pairs=6))"
    done = site.manage("shell", "-v0", "-c", FERRY + make)
    assert done.returncode == 0, done.stderr
    return iter(done.stdout.split())


@pytest.fixture
def ferry(page, site, chats):
    page.goto(f"{site.url}/chat/{next(chats)}/")
    expect(page.locator("#ledger")).to_contain_text("of 1024 tokens")
    return page


def num_tokens(page):
    return int(re.search(r"(\d+) of 1024", page.locator("#ledger").inner_text())[1])


def open_panel(page):
    page.locator(".ledger-button").click()
    expect(page.get_by_role("heading", name="What the model reads")).to_be_visible()


def compress(page):
    page.get_by_label("Message", exact=True).fill("/compress")
    page.keyboard.press("Enter")
    expect(page.locator(".summary")).to_be_visible(timeout=60_000)


def test_the_count_follows_what_is_typed(ferry):
    before = num_tokens(ferry)
    ferry.get_by_label("Message", exact=True).fill("Does it carry dogs as well?")
    expect(ferry.locator("#ledger")).not_to_contain_text(f"{before} of")
    assert before < num_tokens(ferry) < before + 40


def test_the_bar_says_what_becomes_of_messages_that_leave_the_answer_no_room(ferry):
    box = ferry.get_by_label("Message", exact=True)
    box.fill("Does it carry dogs as well? " * 85)
    expect(ferry.locator("#ledger")).to_contain_text("older messages will be summarised")
    ferry.locator("#settings [name=compress_at]").select_option("0", force=True)
    expect(ferry.locator("#settings .saved")).to_have_text("Saved. The next answer uses it.")
    box.press("End")
    box.press("!")
    expect(ferry.locator("#ledger")).to_contain_text("little room for the answer")


def test_the_count_follows_the_files_that_are_attached(ferry):
    before = num_tokens(ferry)
    pick(ferry, "mill.txt", b"The mill was built in 1887. " * 4)
    expect(ferry.locator(".file-chip[data-file]")).to_have_count(1)
    expect(ferry.locator("#ledger")).not_to_contain_text(f"{before} of")
    assert num_tokens(ferry) > before + 20
    open_panel(ferry)
    expect(ferry.locator("#dialog")).to_contain_text("Attachments")
    ferry.get_by_role("button", name="Read what will be sent").click()
    expect(ferry.locator(".sent")).to_contain_text("--- mill.txt ---")
    ferry.locator("#dialog").get_by_role("button", name="Close").click()
    ferry.get_by_role("button", name="Remove mill.txt").click()
    expect(ferry.locator("#ledger")).to_contain_text(f"{before} of")


def test_a_long_chat_is_summarised_by_hand_and_its_messages_are_folded(ferry):
    before = num_tokens(ferry)
    compress(ferry)
    expect(ferry.locator(".message:visible")).to_have_count(2)
    expect(ferry.locator("#ledger")).not_to_contain_text(f"{before} of")
    assert num_tokens(ferry) < before
    ferry.screenshot(path=SHOTS / "summary.png")
    ferry.get_by_label("Show the messages").check()
    expect(ferry.locator(".message:visible")).to_have_count(12)
    send(ferry, "And back?")
    wait_until_answered(ferry)


def test_commands_are_listed_behind_the_slash_and_carried_out_from_there(ferry):
    ferry.get_by_label("Message", exact=True).focus()
    ferry.keyboard.type("/")
    options = ferry.locator("#prompts [role=option]:visible")
    expect(options.first).to_contain_text("Summarise older messages")
    ferry.keyboard.type("com")
    expect(options).to_have_count(1)
    expect(ferry.get_by_text("No prompt matches")).to_be_hidden()
    ferry.screenshot(path=SHOTS / "commands.png")
    ferry.keyboard.press("Enter")
    expect(ferry.locator(".summary")).to_be_visible(timeout=60_000)
    expect(ferry.get_by_label("Message", exact=True)).to_have_value("")
    expect(ferry.locator(".summary")).to_contain_text("taken out word for word")


def test_what_begins_with_a_slash_and_is_no_command_is_sent(ferry):
    send(ferry, "/etc/hosts holds what?")
    expect(ferry.locator(".message.user .bubble").last).to_have_text("/etc/hosts holds what?")
    wait_until_answered(ferry)


def test_a_summary_is_edited_and_undone(ferry):
    compress(ferry)
    ferry.locator(".summary").get_by_role("button", name="Edit").click()
    ferry.get_by_label("Decisions").fill("We take the ferry at ten.")
    ferry.screenshot(path=SHOTS / "summary-edit.png")
    ferry.get_by_role("button", name="Save").click()
    fact = ferry.locator(".summary li.is-pinned", has_text="We take the ferry at ten.")
    expect(fact).to_be_visible()
    fact.get_by_role("button").click()
    expect(fact).to_have_count(0)
    ferry.locator(".summary").get_by_role("button", name="Undo").click()
    expect(ferry.locator(".summary")).to_have_count(0)
    expect(ferry.locator(".message:visible")).to_have_count(12)


def test_messages_are_pinned_and_left_out_in_the_panel(ferry):
    before = num_tokens(ferry)
    open_panel(ferry)
    row = ferry.locator(".ledger-turns li", has_text="Question 2")
    row.get_by_role("button", name="Leave out").click()
    expect(row).to_contain_text("left out")
    ferry.locator(".ledger-turns li", has_text="Question 3").get_by_role("button", name="Pin").click()
    expect(ferry.locator(".ledger-turns li", has_text="Question 3")).to_contain_text("pinned")
    ferry.screenshot(path=SHOTS / "context.png")
    ferry.locator("#dialog").get_by_role("button", name="Close").click()
    expect(ferry.locator(".placement")).to_have_count(2)
    expect(ferry.locator("#ledger")).not_to_contain_text(f"{before} of")


def test_what_will_be_sent_can_be_read_as_the_model_sees_it(ferry):
    ferry.get_by_label("Message", exact=True).fill("And <b>back</b>?")
    open_panel(ferry)
    ferry.get_by_role("button", name="Read what will be sent").click()
    prompt = ferry.locator(".sent")
    expect(prompt).to_contain_text("<|im_start|>system")
    expect(prompt).to_contain_text("And <b>back</b>?")
    ferry.screenshot(path=SHOTS / "context-sent.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(ferry, scheme):
    ferry.emulate_media(color_scheme=scheme)
    ferry.set_viewport_size({"width": 360, "height": 740})
    compress(ferry)
    ferry.screenshot(path=SHOTS / f"summary-360-{scheme}.png")
    open_panel(ferry)
    ferry.screenshot(path=SHOTS / f"context-360-{scheme}.png")
    assert ferry.evaluate("document.documentElement.scrollWidth") <= 360
