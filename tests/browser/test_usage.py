"""A generation's page as a person has it: from the answer to its record, run again, and compared."""

import re
import sqlite3
import struct
import zlib
from contextlib import closing

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import SHOTS
from tests.browser.test_chat import send, wait_until_answered


@pytest.fixture
def open_record(open_page):
    """Ask in a chat, and go from the line under the answer to the page of its generation."""

    def open_record(text, **options):
        page = open_page(**options)
        send(page, text)
        wait_until_answered(page)
        page.locator(".stats a").click()
        page.wait_for_url(re.compile("/usage/"))
        return page

    return open_record


def tamper(site, at):
    """Put the first token of the newest answer in the place of the one after `at`."""
    with closing(sqlite3.connect(site.home / "localllm.sqlite3")) as database, database:
        query = "SELECT id, output_ids FROM gateway_usagelog ORDER BY created_at DESC LIMIT 1"
        id, packed = database.execute(query).fetchone()
        data = zlib.decompress(packed)
        ids = list(struct.unpack(f"<{len(data) // 4}i", data))
        ids[at] = ids[0]
        packed = zlib.compress(struct.pack(f"<{len(ids)}i", *ids))
        database.execute("UPDATE gateway_usagelog SET output_ids = ? WHERE id = ?", (packed, id))


def test_an_answer_leads_to_its_record_which_is_replayed_exactly(open_record):
    page = open_record("What can you do?")
    expect(page.get_by_label("Prompt")).to_contain_text("<|im_start|>user\nWhat can you do?<|im_end|>")
    page.get_by_role("button", name="Replay").click()
    expect(page.locator(".replay .verdict")).to_contain_text("Exact match", timeout=30_000)
    page.screenshot(path=SHOTS / "replay-match.png")


def test_a_difference_is_shown_in_context(open_record, site):
    page = open_record("Who are you?", viewport={"width": 360, "height": 740}, color_scheme="dark")
    tamper(site, at=4)
    page.get_by_role("button", name="Replay").click()
    expect(page.locator(".replay .verdict")).to_contain_text("differs at token 5", timeout=30_000)
    expect(page.locator(".versus mark")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.screenshot(path=SHOTS / "replay-difference-phone.png", full_page=True)
