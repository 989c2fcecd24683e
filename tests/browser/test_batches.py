"""A batch as a person has it: inputs in, the first ones shown, progress, rows, and a file out."""

import json

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import NAME, SHOTS

MAKE = """
from django.contrib.auth.models import User
from schemas_app.models import Schema
schema = Schema.objects.create(owner=User.objects.get(username="%s"), slug="mood", name="Mood of a review")
schema.add_version(text='''%s''', max_tokens=30)
"""
MOOD = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
REVIEWS = "who;review\n" + "".join(f'Maya {n};"It was fine; really."\n' for n in range(40)) + f"Jo;{'long ' * 2000}\n"


@pytest.fixture(scope="module", autouse=True)
def schema(site):
    done = site.manage("shell", "-v0", "-c", MAKE % (NAME, json.dumps(MOOD)))
    assert done.returncode == 0, done.stderr


@pytest.fixture
def new_batch(site, open_page):
    def new_batch(**options):
        page = open_page(**options)
        page.goto(f"{site.url}/schemas/batches/new/?schema=mood")
        return page

    return new_batch


def test_pasted_lines_become_rows_of_data(new_batch):
    page = new_batch()
    page.get_by_label("Inputs").fill("It was fine.\n\nNever again.\n")
    expect(page.get_by_role("heading", name="2 inputs")).to_be_visible()
    page.get_by_role("button", name="Start").press("Enter")
    expect(page.locator("#batch-progress")).to_contain_text("complete")
    expect(page.locator(".batch-row.done .data-view")).to_have_count(2)


def test_a_csv_file_is_read_as_its_reader_chooses_and_its_failures_are_summed_up(new_batch, tmp_path):
    (tmp_path / "reviews.csv").write_text(REVIEWS)
    page = new_batch()
    page.get_by_label("Upload a file").check()
    page.get_by_label("CSV or JSONL file").set_input_files(tmp_path / "reviews.csv")
    page.get_by_role("checkbox", name="review").check()
    expect(page.locator(".batch-inputs li").first).to_have_text("It was fine; really.")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#batch-progress")).to_contain_text("1 × The input does not fit")
    expect(page.locator("#batch-progress")).to_contain_text("40 done")
    page.get_by_role("link", name="Failed").click()
    expect(page.locator(".batch-row")).to_have_count(1)
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    assert download.value.suggested_filename == "mood-of-a-review-reviews-csv.csv"


def test_progress_is_shown_while_it_runs_and_its_end_is_announced(site, new_batch):
    page = new_batch(viewport={"width": 360, "height": 740}, color_scheme="dark")
    page.get_by_label("Inputs").fill("\n".join(f"Review {n}" for n in range(200)))
    expect(page.get_by_role("heading", name="200 inputs")).to_be_visible()
    site.pause()
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#batch-progress")).to_contain_text("running")
    page.screenshot(path=SHOTS / "batch-running-phone-dark.png")
    site.go_on()
    expect(page.locator("#batch-said")).to_have_text("The batch is complete: 200 done, 0 failed.", timeout=60_000)
    expect(page.locator(".batch-row.done")).to_have_count(25)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_batch_is_paused_resumed_and_deleted(site, new_batch):
    page = new_batch()
    page.get_by_label("Inputs").fill("\n".join(f"Review {n}" for n in range(100)))
    expect(page.get_by_role("heading", name="100 inputs")).to_be_visible()
    site.pause()
    page.get_by_role("button", name="Start").click()
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#batch-progress")).to_contain_text("paused")
    site.go_on()
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#batch-progress")).to_contain_text("complete", timeout=60_000)
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="Batches")).to_be_visible()
