"""Uploading a model file in a real browser: in chunks, over a reload, and refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import SHOTS, Site
from tests.gguf_files import STARTER, starter_with


@pytest.fixture
def uploads(page: Page, site: Site) -> Page:
    page.goto(f"{site.url}/models/own/")
    return page


def choose(page: Page, path: Path) -> None:
    page.get_by_label("GGUF file").set_input_files(path)
    page.get_by_role("button", name="Upload", exact=True).click()


def test_a_file_is_uploaded_checked_and_ready(uploads: Page, tmp_path: Path) -> None:
    choose(uploads, starter_with(tmp_path / "my-own.gguf", general__name="My own"))
    expect(uploads.get_by_text("Ready:")).to_be_visible(timeout=60_000)
    expect(uploads.get_by_role("link", name="my-own")).to_be_visible()
    for scheme in ("light", "dark"):
        uploads.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        uploads.screenshot(path=SHOTS / f"uploads-{scheme}.png", full_page=True)


def test_it_goes_on_after_a_reload(uploads: Page, tmp_path: Path, complaints: list[str]) -> None:
    path = starter_with(tmp_path / "again.gguf", general__name="Again")
    uploads.route("**/chunk/?offset=2*", lambda route: route.abort())
    choose(uploads, path)
    expect(uploads.get_by_text("The server cannot be reached")).to_be_visible()
    uploads.unroute("**/chunk/?offset=2*")
    uploads.reload()
    expect(uploads.get_by_text("To go on, choose the same file again.")).to_be_visible()
    uploads.set_viewport_size({"width": 360, "height": 740})
    expect(uploads.locator("#sidebar")).not_to_be_in_viewport()
    uploads.screenshot(path=SHOTS / "uploads-360.png", full_page=True)
    assert uploads.evaluate("document.documentElement.scrollWidth <= innerWidth")
    offsets: list[str] = []
    uploads.on("request", lambda request: offsets.append(request.url) if "offset=" in request.url else None)
    choose(uploads, path)
    expect(uploads.get_by_role("link", name="again")).to_be_visible(timeout=60_000)
    assert len(offsets) == 1 and offsets[0].endswith("offset=2097152")
    complaints.clear()  # of the request that was cut


def test_it_is_paused_goes_on_and_is_cancelled(uploads: Page, tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    path.write_bytes(STARTER.read_bytes() + bytes(40_000_000))
    card = uploads.locator("[data-sending]")
    uploads.route("**/chunk/?offset=*", lambda route: (uploads.wait_for_timeout(100), route.continue_()))
    choose(uploads, path)
    card.get_by_role("button", name="Pause").click()
    expect(card).to_contain_text("Paused.")
    expect(uploads.locator("#uploads")).not_to_contain_text("large.gguf")
    card.get_by_role("button", name="Go on").click()
    expect(card.get_by_role("button", name="Pause")).to_be_visible()
    card.get_by_role("button", name="Cancel").click()
    expect(card).to_be_hidden()
    uploads.reload()
    expect(uploads.get_by_text("large.gguf")).to_have_count(0)


def test_what_is_no_model_is_refused_in_words(uploads: Page, tmp_path: Path, complaints: list[str]) -> None:
    path = tmp_path / "holiday.gguf"
    path.write_bytes(b"\xff\xd8\xff" + bytes(5_000_000))
    choose(uploads, path)
    expect(uploads.get_by_text("holiday.gguf cannot be used: it is no GGUF file").first).to_be_visible()
    uploads.screenshot(path=SHOTS / "uploads-refused.png", full_page=True)
    complaints.clear()  # of the status 422


def test_a_smaller_model_is_made_on_its_page(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/models/installed/starter/")
    page.get_by_role("link", name="Make it smaller").click()
    page.get_by_label("Type").select_option("Q5_K_M")
    page.get_by_role("button", name="Make it").click()
    expect(page.get_by_role("link", name="LocalLLM Starter 3M Q5_K_M")).to_be_visible(timeout=60_000)
    page.screenshot(path=SHOTS / "quantise.png", full_page=True)
    page.get_by_role("link", name="LocalLLM Starter 3M Q5_K_M").click()
    page.get_by_role("link", name="Make it smaller").click()
    expect(page.get_by_text("has been made smaller already")).to_be_visible()
