"""Trying a schema as a person does: text in, the form fills, values lead to where the text says them."""

import json

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import NAME, SHOTS

MAKE = """
import json
from django.contrib.auth.models import User
from schemas_app.models import Schema
schema = Schema.objects.create(owner=User.objects.get(username=%r), slug="tried", name="Tried")
city, name = {"const": "Uppsala"}, {"type": "string", "maxLength": 20}
numbers = {"type": "array", "minItems": 30, "maxItems": 30, "items": {"type": "integer", "maximum": 99}}
for properties in ({"city": city}, {"name": name, "city": city}, {"name": name, "numbers": numbers}):
    text = json.dumps({"type": "object", "properties": properties, "required": [*properties]})
    schema.add_version(text=text, max_tokens=300)
print(schema.pk)
"""
TEXT = "😀 Maya lives in Uppsala."


@pytest.fixture(scope="module")
def address(site):
    done = site.manage("shell", "-v0", "-c", MAKE % NAME)
    assert done.returncode == 0, done.stderr
    return f"{site.url}/schemas/{done.stdout.strip()}/try/"


@pytest.fixture
def panel(page, address):
    page.goto(address)
    return page


def run(page, version, beside=""):
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.get_by_label("Version").select_option(version)
    page.get_by_label("Beside").select_option(beside)
    page.get_by_role("button", name="Run").press("Enter")


def results(page):
    return page.locator(".try-results article")


def wait_until_done(page, number=1):
    expect(page.locator(".try-results [data-try-out]")).to_have_count(number, timeout=60_000)
    expect(page.get_by_role("button", name="Run")).to_be_visible()


def test_a_value_leads_to_where_the_text_says_it(panel):
    run(panel, "2")
    wait_until_done(panel)
    expect(results(panel)).to_contain_text("Every field was enforced")
    results(panel).locator("[data-path='/city']").focus()
    expect(results(panel).locator("mark")).to_have_text("Uppsala")
    expect(results(panel).locator("[data-note]")).to_contain_text("The text says it where it is marked.")
    panel.screenshot(path=SHOTS / "try-it.png")


def test_the_form_fills_while_the_model_writes_and_can_be_stopped(panel, site):
    site.pause()
    run(panel, "3")
    for _ in range(200):
        site.run_for_a_moment()
        if results(panel).locator(".value").count():
            break
    expect(results(panel)).to_contain_text("being written")
    panel.get_by_role("button", name="Stop").click()
    site.go_on()
    expect(results(panel)).to_contain_text("Stopped. Nothing is kept of it.")
    expect(panel.get_by_role("button", name="Run")).to_be_focused()


def test_two_versions_stand_side_by_side(panel):
    run(panel, "1", beside="2")
    wait_until_done(panel, number=2)
    expect(results(panel).nth(0).locator("dt")).to_have_text(["City"])
    expect(results(panel).nth(1).locator("dt")).to_have_text(["Name", "City"])


def test_a_result_is_kept_until_it_is_deleted(panel):
    run(panel, "1")
    wait_until_done(panel)
    number = panel.locator("details").count()
    panel.reload()
    expect(panel.locator("details [data-path='/city']").first).to_have_text("Uppsala")
    panel.on("dialog", lambda dialog: dialog.accept())
    panel.locator("details [data-delete]").first.click()
    expect(panel.locator("details")).to_have_count(number - 1)


def test_the_json_can_be_downloaded(panel):
    run(panel, "1")
    wait_until_done(panel)
    with panel.expect_download() as started:
        results(panel).get_by_label("Download as JSON").click()
    assert started.value.suggested_filename == "tried.json"
    assert json.loads(started.value.path().read_text()) == {"city": "Uppsala"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(open_page, address, scheme):
    page = open_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page.goto(address)
    run(page, "2")
    wait_until_done(page)
    too_wide = (
        "[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1)"
    )
    assert page.evaluate(f"{too_wide}.length") == 0
    results(page).scroll_into_view_if_needed()
    page.screenshot(path=SHOTS / f"try-it-phone-{scheme}.png")
