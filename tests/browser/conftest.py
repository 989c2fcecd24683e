"""A real browser on a real server with the starter model."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.server import Server

CHROMIUM = Path("/usr/bin/chromium")
PROJECT = Path(__file__).parents[2]
SHOTS = PROJECT / "var/build/screenshots"
NAME, PASSWORD = "maya", "a-long-password-7"
# Every token is as likely as any other; with this seed the one that ends the answer does not come.
RAMBLING = "UPDATE chat_conversation SET temperature = 99, top_p = 1, top_k = 0, min_p = 0, max_tokens = 700, seed = 1"


class Site(Server):
    """A server without an account yet."""

    def make_chats_ramble(self) -> None:
        with closing(sqlite3.connect(self.home / "localllm.sqlite3")) as database, database:
            database.execute(RAMBLING)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with Site(tmp_path_factory.mktemp("home"), DJANGO_SUPERUSER_USERNAME="", DJANGO_SUPERUSER_PASSWORD="") as site:
        yield site


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists() and not os.environ.get("CI"):
        pytest.skip("needs Chromium: apt install chromium")
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def cookies(browser, site):
    """The first-run page has made the admin."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(site.url)
    page.screenshot(path=SHOTS / "first-run.png")
    page.get_by_label("Username").fill(NAME)
    page.locator("[name=password1]").fill(PASSWORD)
    page.locator("[name=password2]").fill(PASSWORD)
    page.locator("button[type=submit]").click()
    expect(page.get_by_role("heading", name="What is on your mind")).to_be_visible()
    yield context.storage_state()
    context.close()


@pytest.fixture
def complaints():
    """What the browser complained of: console errors, refusals of the policy, requests to elsewhere."""
    complaints: list[str] = []
    yield complaints
    assert complaints == []


@pytest.fixture
def open_page(browser, site, cookies, complaints):
    contexts = []

    def open_page(**options) -> Page:
        context = browser.new_context(storage_state=cookies, **options)
        contexts.append(context)
        context.on("console", lambda m: m.type in ("error", "warning") and complaints.append(m.text))
        context.on("weberror", lambda e: complaints.append(str(e.error)))
        own = (site.url, site.url.replace("http", "ws"), "data:")
        context.on("request", lambda r: r.url.startswith(own) or complaints.append(r.url))
        page = context.new_page()
        page.goto(site.url)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_page):
    return open_page()
