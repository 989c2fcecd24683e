"""A real browser on a real server with the starter model."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.browser_client import Browser
from tests.server import Server

CHROMIUM = Path("/usr/bin/chromium")
PROJECT = Path(__file__).parents[2]
SHOTS = PROJECT / "var/build/screenshots"
NAME, PASSWORD = "maya", "a-long-password-7"
# Every token is as likely as any other; with this seed the one that ends the answer does not come.
RAMBLING = "UPDATE chat_conversation SET temperature = 99, top_p = 1, top_k = 0, min_p = 0, max_tokens = 700, seed = 1"

expect.set_options(timeout=20_000)  # a page may wait for its turn on a busy machine


class Site(Server):
    """A server with one account, that of `NAME`."""

    def __init__(self, home: Path, **options: Any) -> None:
        account = {"DJANGO_SUPERUSER_USERNAME": NAME, "DJANGO_SUPERUSER_PASSWORD": PASSWORD}
        super().__init__(home, **account | options)

    def make_chats_ramble(self) -> None:
        with closing(sqlite3.connect(self.database)) as database, database:
            database.execute(RAMBLING)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with Site(tmp_path_factory.mktemp("home")) as site:
        yield site


@pytest.fixture(scope="package")
def browser():
    if not CHROMIUM.exists() and not os.environ.get("CI"):
        pytest.skip("needs Chromium: apt install chromium")
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def cookies(site):
    """Those of somebody who has signed in."""
    signed_in = Browser(site.url, NAME, PASSWORD)
    return [{"name": name, "value": value, "url": site.url} for name, value in signed_in.cookies.items()]


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
        context = browser.new_context(**options)
        context.add_cookies(cookies)
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
