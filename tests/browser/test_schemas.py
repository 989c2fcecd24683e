"""The editor of schemas as a person has it: rows write the text, the text is checked, versions are compared."""

import json
import re

from playwright.sync_api import Page, expect

from tests.browser.conftest import SHOTS

TEXT = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
PHONE = {"width": 360, "height": 740}


def open_editor(page: Page, site, name: str, text: object = None) -> None:
    page.goto(f"{site.url}/schemas/new/")
    page.get_by_label("Name", exact=True).fill(name)
    if text is not None:
        page.locator("#id_text").fill(json.dumps(text, indent=2))


def save(page: Page) -> None:
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", name="What is asked for")).to_be_visible()


def answered(status: int, complaints: list[str]) -> None:
    """The browser complains of such a status, which is meant here."""
    assert complaints and all(str(status) in each for each in complaints)
    complaints.clear()


def test_the_sidebar_leads_to_the_shipped_schemas(page):
    page.get_by_role("link", name="Schemas").click()
    page.get_by_role("link", name="Feedback analysis").click()
    expect(page.get_by_text("Enforced while the model writes")).to_be_visible()
    expect(page.get_by_text(re.compile(r"the schema adds \d+ tokens"))).to_be_visible()
    page.screenshot(path=SHOTS / "schema.png")


def test_rows_write_the_schema_while_they_are_filled_in(page, site):
    open_editor(page, site, "Review")
    page.get_by_text("Fields", exact=True).click()
    page.get_by_role("button", name="Add a field").click()
    page.keyboard.type("stars")
    page.get_by_label("Kind").select_option(label="Whole number")
    page.get_by_label("Most").fill("5")
    expect(page.locator("#id_text")).to_have_value(re.compile('"maximum": 5'))
    expect(page.locator("#report")).to_contain_text('{"stars":0}')
    page.screenshot(path=SHOTS / "schema-fields.png")
    save(page)
    expect(page.get_by_role("heading", name="Review")).to_be_visible()


def test_a_mistake_is_shown_at_once_and_leads_to_its_place(page, site):
    open_editor(page, site, "Wrong", TEXT | {"minProperties": "one"})
    report = page.locator("#report")
    expect(report).to_contain_text("This cannot be used.")
    report.get_by_role("button", name="line 11, column 20").click()
    chosen = "([area]) => area.value.slice(area.selectionStart, area.selectionStart + 5)"
    assert page.locator("#id_text").evaluate_all(chosen) == '"one"'
    expect(page.locator(".gutter")).to_have_text(re.compile(r"1\s+2\s.*\s12$", re.DOTALL))


def test_an_import_replaces_the_text_and_the_rows(page, site):
    open_editor(page, site, "Imported")
    page.get_by_text("Import", exact=True).click()
    page.get_by_label("From").select_option("pydantic")
    page.get_by_label("Paste it here").fill("class Pet(BaseModel):\n    name: str")
    page.get_by_role("button", name="Take it over").click()
    expect(page.locator("#id_text")).to_have_value(re.compile('"title": "Pet"'))
    expect(page.locator("#report")).to_contain_text('{"name":""}')


def test_an_example_is_added_and_checked_against_the_schema(page, site, complaints):
    open_editor(page, site, "With an example", TEXT)
    page.get_by_role("button", name="Add an example").click()
    page.keyboard.type("A book about whales")
    page.get_by_label("Output, as JSON").fill('{"title": 3}')
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("The output of example 1 breaks the schema at /title")).to_be_visible()
    answered(400, complaints)
    page.get_by_label("Output, as JSON").fill('{"title": "Moby Dick"}')
    save(page)
    expect(page.get_by_text("A book about whales")).to_be_visible()


def test_two_versions_stand_side_by_side_and_the_old_one_comes_back(page, site):
    open_editor(page, site, "Changed", TEXT)
    save(page)
    page.get_by_role("link", name="Edit").click()
    page.locator("#id_text").fill(json.dumps(TEXT, indent=2).replace("title", "name"))
    save(page)
    page.get_by_role("link", name="compare version 1").click()
    expect(page.locator("del").first).to_contain_text('"title"')
    expect(page.locator("ins").first).to_contain_text('"name"')
    page.screenshot(path=SHOTS / "schema-compare.png")
    page.get_by_role("button", name="Roll back to version 1").click()
    expect(page.get_by_text("Version 1 is back, as version 3.")).to_be_visible()


def test_too_much_is_said_where_the_report_stands(page, site, complaints):
    open_editor(page, site, "Huge")
    page.locator("#id_text").evaluate("(area) => { area.value = 'x'.repeat(3 << 20); }")
    page.locator("#id_text").dispatch_event("input")
    expect(page.locator("#report")).to_contain_text("at most 2 MB can be sent")
    answered(413, complaints)


def test_the_pages_fit_a_phone(open_page, site):
    page = open_page(viewport=PHONE)
    for path in ("/schemas/", "/schemas/new/"):
        page.goto(site.url + path)
        column = page.locator(".column.wide")
        assert column.evaluate("(it) => it.scrollWidth <= it.clientWidth + 1"), path
    page.get_by_text("Fields", exact=True).click()
    page.get_by_role("button", name="Add a field").click()
    page.screenshot(path=SHOTS / "schema-phone.png")
