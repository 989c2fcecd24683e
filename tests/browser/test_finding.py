"""A model as somebody gets it who knows nothing of quantisation: seen, got in a click, watched, and talked to."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import SHOTS, Site
from tests.hub import HubServer
from tests.server import ROOT

STARTER = (ROOT / "localllm/gateway/data/starter.gguf").read_bytes()
QUANTISATIONS = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")
SLOW_S = 0.3  # before each of some fifty pieces of a file
MOVE_AT_ONCE = """() => new MutationObserver((changes, observer) => {
  const slider = document.querySelector("#n_ctx")
  if (!slider) return
  observer.disconnect()
  slider.value = slider.min
  slider.dispatchEvent(new Event("input", {bubbles: true}))
}).observe(document.body, {childList: true, subtree: true})"""


@pytest.fixture(scope="module")
def hub():
    """It has every repository, and in each the starter in all quantisations."""
    with HubServer(files("first"), repo="") as hub:
        yield hub


def files(edition):
    """Others than those of another edition."""
    return {f"model-{name}.gguf": STARTER + f"{name} {edition}".encode() for name in QUANTISATIONS}


@pytest.fixture(scope="module")
def site(tmp_path_factory, hub):
    with Site(tmp_path_factory.mktemp("home"), HF_ENDPOINT=hub.url) as site:
        yield site


@pytest.fixture(autouse=True)
def quick(hub):
    yield
    hub.pause_s = 0


def test_the_first_page_gets_a_model_that_new_chats_use(page, hub):
    hub.pause_s = SLOW_S
    card = page.locator("#first-model")
    expect(card).to_contain_text("Get a model that fits this machine")
    page.screenshot(path=SHOTS / "first-model.png")
    card.get_by_role("button", name="Get").press("Enter")
    expect(card).to_contain_text("downloading")
    page.reload()
    expect(card.get_by_role("progressbar")).to_have_attribute("value", re.compile("[1-9]"))
    page.screenshot(path=SHOTS / "first-model-progress.png")
    hub.pause_s = 0
    expect(card).to_contain_text("New chats use it.", timeout=30_000)
    card.get_by_role("link", name="Start a chat").click()
    expect(card).to_have_count(0)
    page.get_by_label("Message", exact=True).fill("Hello")
    page.keyboard.press("Enter")
    expect(page.locator(".stats")).to_contain_text("model-q", timeout=60_000)


def test_a_model_of_the_catalogue_is_got_paused_resumed_and_made_the_default(page, site, hub):
    hub.pause_s, hub.files = SLOW_S, files("second")
    page.get_by_role("link", name="Models").click()
    page.goto(f"{site.url}/models/catalogue/")
    page.get_by_role("article", name="Phi-3 Mini").get_by_role("button", name="Get this").click()
    row = page.locator(".download")
    expect(row).to_contain_text("Phi-3 Mini")
    expect(row).to_contain_text(re.compile(r"MB of 3\.6 MB"))
    row.get_by_role("button", name="Pause").click()
    expect(row.locator(".state")).to_have_text("paused")
    hub.pause_s = 0
    row.get_by_role("button", name="Resume").click()
    expect(page.locator(".ready")).to_contain_text("Phi-3 Mini", timeout=30_000)
    page.get_by_role("button", name="Make it the default Phi-3 Mini").click()
    expect(page.locator("#messages")).to_contain_text("is the default model now")


def test_a_download_is_cancelled(page, site, hub):
    hub.pause_s = SLOW_S
    page.goto(f"{site.url}/models/catalogue/llama-3-2-1b/")
    page.get_by_role("row", name="Q3_K_S").get_by_role("button", name="Get").click()
    expect(page.locator(".download")).to_contain_text("Llama 3.2 1B Q3_K_S")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#downloads")).to_contain_text("Nothing is being downloaded")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_slider_tells_what_a_window_takes(open_page, site, scheme):
    page = open_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page.goto(f"{site.url}/models/hub/?repo=someone/else")
    page.get_by_role("link", name="model-Q6_K.gguf").click()
    account = page.locator("#hub-account")
    expect(account).to_contain_text("1,024 tokens for each of 4 conversations")
    before = account.inner_text()
    page.get_by_label("Context window").press("Home")
    expect(account).to_contain_text("256 tokens for each of 4 conversations")
    assert account.inner_text() != before
    page.screenshot(path=SHOTS / f"fit-phone-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_slider_listens_from_the_moment_it_is_there(page, site):
    page.goto(f"{site.url}/models/hub/?repo=someone/else")
    page.evaluate(MOVE_AT_ONCE)
    page.get_by_role("link", name="model-Q6_K.gguf").click()
    expect(page.locator("#hub-account")).to_contain_text("256 tokens for each of 4 conversations")


@pytest.mark.parametrize("path", ["catalogue/", "catalogue/qwen3-8b/", "downloads/", "hub/?repo=someone/else"])
def test_nothing_is_wider_than_a_phone(open_page, site, path):
    page = open_page(viewport={"width": 360, "height": 740})
    page.goto(f"{site.url}/models/{path}")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
