"""Installed models as an admin has them: loaded and unloaded, swapped under a running reply, set up, rolled back."""

import os
import re
import shutil
import signal

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import SHOTS, Site
from tests.browser.test_chat import answers, begin_long_answer, wait_until_answered
from tests.server import ROOT

STARTER = ROOT / "localllm/gateway/data/starter.gguf"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """One that has measured nothing yet."""
    with Site(tmp_path_factory.mktemp("home"), is_new=True) as site:
        yield site


@pytest.fixture(scope="module", autouse=True)
def second(site):
    for name in ("second", "third"):
        path = site.home / f"{name}.gguf"
        shutil.copy(STARTER, path)
        done = site.manage("registermodel", str(path))
        assert done.returncode == 0, done.stderr


@pytest.fixture
def models(site, open_page):
    def models(path="", **options):
        page = open_page(**options)
        page.goto(f"{site.url}/models/{path}")
        return page

    return models


def card(page, name):
    return page.get_by_role("article", name=name)


def test_a_model_is_loaded_and_unloaded(models):
    page = models()
    expect(card(page, "second")).to_contain_text("Not loaded")
    card(page, "second").get_by_role("button", name="Load").press("Enter")
    expect(page.locator("#messages")).to_contain_text("second is loading, or loaded already.")
    expect(card(page, "second")).to_contain_text(re.compile(r"\bLoaded"), timeout=60_000)
    expect(page.locator(".holders")).to_contain_text("second")
    page.screenshot(path=SHOTS / "models.png")
    card(page, "second").get_by_role("button", name="Unload").click()
    expect(card(page, "second")).to_contain_text("Not loaded")


def test_its_numbers_are_measured_by_themselves(site, models):
    page = models("installed/starter/")
    for _ in range(60):
        if page.get_by_text("Not measured yet").count() == 0:
            break
        page.wait_for_timeout(500)
        page.reload()
    expect(page.locator(".numbers")).to_contain_text(re.compile(r"Writes\s*[\d,.]+ tokens/s"))
    expect(page.locator(".numbers")).to_contain_text(re.compile(r"[\d.]+ % (more|less) than measured"))
    page.get_by_text("Chat template").click()
    expect(page.get_by_label("Chat template")).to_contain_text("im_start")
    page.screenshot(path=SHOTS / "model.png", full_page=True)


def test_a_new_default_takes_over_and_the_running_reply_ends_on_the_old_one(site, open_page, models):
    chat = open_page()
    begin_long_answer(chat, site)
    (worker,) = site.worker_pids
    page = models()
    card(page, "second").get_by_role("button", name="Make default").click()
    expect(card(page, "second").locator(".badge")).to_have_text("default", timeout=60_000)
    expect(card(page, "Starter")).to_contain_text("Finishing its replies")
    os.kill(worker, signal.SIGCONT)
    wait_until_answered(chat)
    expect(answers(chat).last).not_to_contain_text("failed")
    expect(card(page, "Starter")).to_contain_text("Not loaded", timeout=30_000)
    card(page, "Starter").get_by_role("button", name="Make default").click()
    expect(card(page, "Starter").locator(".badge")).to_have_text("default", timeout=60_000)


def test_the_account_of_memory_follows_the_settings(models):
    page = models("installed/second/settings/")
    fit = page.locator("#settings-fit")
    expect(fit).to_contain_text("Fits: it needs")
    page.get_by_label("Slots").fill("1")
    expect(fit).to_contain_text("for each of 1 conversation")
    page.get_by_label("Slots").fill("100")
    expect(fit).to_contain_text("It is 100; it must be from 1 to 64.")
    page.get_by_role("button", name="Many users").click()
    expect(page.get_by_label("Slots")).to_have_value("8")
    page.get_by_label("Slots").press("Enter")
    expect(page.locator("#messages")).to_contain_text("second was saved.")
    expect(page.locator(".numbers")).to_contain_text(re.compile(r"Conversations at once\s*8"))


def test_a_file_is_replaced_and_rolled_back_and_the_model_deleted(models):
    page = models("installed/second/")
    page.get_by_label("Replace the file by that of").select_option("third")
    page.get_by_role("button", name="Replace").click()
    expect(page.locator(".file-versions [aria-current]")).to_contain_text("third.gguf", timeout=30_000)
    page.get_by_role("button", name=re.compile("Use it.*second.gguf")).click()
    expect(page.locator(".file-versions [aria-current]")).to_contain_text("second.gguf", timeout=30_000)
    page.get_by_role("link", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#messages")).to_contain_text("second was deleted.")
    expect(card(page, "second")).to_have_count(0)


@pytest.mark.parametrize("path", ["", "installed/starter/", "installed/starter/settings/"])
def test_it_fits_a_phone_in_the_dark(models, path):
    page = models(path, viewport={"width": 360, "height": 740}, color_scheme="dark")
    page.screenshot(path=SHOTS / f"models{path.count('/')}-phone-dark.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
