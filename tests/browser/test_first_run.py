"""The first page of a new installation, which makes the account of its admin."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import NAME, PASSWORD, SHOTS, Site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with Site(tmp_path_factory.mktemp("home"), DJANGO_SUPERUSER_USERNAME="") as site:
        yield site


@pytest.fixture(scope="module")
def cookies():
    """Nobody has signed in."""
    return []


def test_the_first_account_is_made_on_the_first_page(page):
    page.screenshot(path=SHOTS / "first-run.png")
    page.get_by_label("Username").fill(NAME)
    page.locator("[name=password1]").fill(PASSWORD)
    page.locator("[name=password2]").fill(PASSWORD)
    page.locator("button[type=submit]").click()
    expect(page.get_by_role("heading", name="What is on your mind")).to_be_visible()
