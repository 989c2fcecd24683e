"""Answers by a schema as a person has them: chosen in the composer, filled in as a form, shown as JSON."""

import json

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import NAME, SHOTS
from tests.browser.test_chat import answers, send, wait_until_answered

MAKE = """
import json
from django.contrib.auth.models import User
from schemas_app.models import Schema
def make(name, description, schema, **fields):
    owner = User.objects.get(username=%r)
    made = Schema.objects.create(owner=owner, slug=Schema.objects.free_slug(name), name=name, description=description)
    made.add_version(text=json.dumps(schema), max_tokens=300, **fields)
text = {"type": "string", "maxLength": 30}
make("Contact card", "Who it is about, and where they live.",
     {"type": "object", "properties": {"name": text, "city": text}, "required": ["name", "city"]})
make("Numbers", "Many of them.", {"type": "object", "required": ["title", "numbers"], "properties": {"title": text,
     "numbers": {"type": "array", "minItems": 30, "maxItems": 30, "items": {"type": "integer", "maximum": 99}}}})
make("Riddle", "Nobody can solve it.", {"type": "object", "required": ["a"], "properties": {
     "a": {"type": "string", "pattern": "^[(]$", "format": "regex"}}})
"""
SENTENCE = "Extract name and city as JSON: Maya Lindgren lives in Uppsala."


@pytest.fixture(scope="module", autouse=True)
def schemas(site):
    done = site.manage("shell", "-c", MAKE % NAME)
    assert done.returncode == 0, done.stderr


def choose(page, name):
    """By keyboard alone, as it must be possible."""
    page.locator("#schema-button").focus()
    page.keyboard.press("Enter")
    page.keyboard.type(name)
    expect(page.locator("#schema-list button")).to_have_count(1)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#schema-button")).to_contain_text(name)


def form(page):
    return answers(page).last.locator(".form")


def test_it_answers_by_the_schema_that_was_chosen_until_another_is(page):
    choose(page, "Contact card")
    send(page, SENTENCE)
    wait_until_answered(page)
    expect(form(page)).to_contain_text("Maya Lindgren")
    expect(page.locator(".guarantee")).to_contain_text("Every field was enforced while it was written, then checked.")
    page.screenshot(path=SHOTS / "schema.png")
    send(page, "And Jonas Berg lives in Kiruna.")
    wait_until_answered(page)
    expect(page.locator(".form dl")).to_have_count(2)
    page.get_by_role("button", name="Schema of the answers").click()
    page.get_by_role("button", name="No schema").click()
    send(page, "Who are you?")
    wait_until_answered(page)
    expect(page.locator("[data-structured]")).to_have_count(2)


def test_it_shows_copies_and_downloads_the_json(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    choose(page, "Contact card")
    send(page, SENTENCE)
    wait_until_answered(page)
    page.get_by_text("Show as JSON").click()
    expect(form(page)).to_be_hidden()
    expect(page.locator(".raw code .nt").first).to_have_text('"name"')
    page.screenshot(path=SHOTS / "schema-json.png")
    answers(page).get_by_role("button", name="Copy", exact=True).last.click()
    expect(page.locator("#toast")).to_have_text("Copied")
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as JSON").click()
    assert download.value.suggested_filename == "contact-card.json"
    assert json.loads(download.value.path().read_text()) == copied == {"name": "Maya Lindgren", "city": "Uppsala"}


def begin_numbers(page, site):
    """An answer of thirty numbers that stands still in the middle."""
    send(page, "Hello")
    wait_until_answered(page)
    choose(page, "Numbers")
    site.pause()
    send(page, "Count.")
    for _ in range(500):
        if form(page).locator("li").count():
            return
        site.run_for_a_moment()
        page.wait_for_timeout(150)
    raise AssertionError("The form is not filled in.")


def test_it_fills_in_the_form_while_the_model_writes_and_after_a_reload(page, site):
    begin_numbers(page, site)
    page.screenshot(path=SHOTS / "schema-streaming.png")
    page.wait_for_timeout(300)
    before = form(page).inner_text()
    page.reload()
    expect(page.locator("[data-live] .form")).to_have_text(before, use_inner_text=True)
    site.go_on()
    wait_until_answered(page)
    expect(form(page).locator("li")).to_have_count(30)


def test_it_stops_a_form_and_goes_on_with_it(page, site):
    begin_numbers(page, site)
    page.get_by_role("button", name="Stop the answer").click()
    expect(answers(page).last).to_contain_text("You stopped this answer.")
    site.go_on()
    page.get_by_role("button", name="Continue").click()
    wait_until_answered(page)
    expect(form(page).locator("li")).to_have_count(30)


def test_it_tells_a_screen_reader_the_form_at_its_end_only(page, site):
    begin_numbers(page, site)
    expect(page.locator("#announcer")).not_to_contain_text("Numbers")
    site.go_on()
    wait_until_answered(page)
    expect(page.locator("#announcer")).to_contain_text("Numbers")
    expect(page.locator("#announcer")).to_contain_text("Answer complete.")


def test_it_shows_the_best_draft_of_an_answer_that_failed(page):
    choose(page, "Riddle")
    send(page, "Solve it.")
    wait_until_answered(page)
    expect(answers(page)).to_contain_text("No attempt gave data that satisfies the schema")
    expect(form(page)).to_contain_text("(")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    expect(page.get_by_role("button", name="Continue")).to_have_count(0)


def test_a_slow_list_does_not_come_after_what_was_searched_for(page):
    held = []
    page.route("**/picker?*", lambda route: route.continue_() if "q=Ri" in route.request.url else held.append(route))
    page.locator("#schema-button").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("Riddle")
    page.wait_for_timeout(500)  # the search begins 150 ms after the last key
    for route in held:
        route.continue_()
    page.wait_for_timeout(500)
    expect(page.locator("#schema-list button")).to_have_count(1)


def test_it_fits_a_phone_in_the_dark(open_page):
    page = open_page(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True, color_scheme="dark")
    page.get_by_role("button", name="Schema of the answers").click()
    page.wait_for_timeout(300)
    page.screenshot(path=SHOTS / "schema-picker-phone.png")
    page.get_by_role("button", name="Contact card").click()
    send(page, SENTENCE)
    wait_until_answered(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.screenshot(path=SHOTS / "schema-phone.png")
