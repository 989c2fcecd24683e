"""Prompts as a person uses them: chosen behind `/` by keyboard alone, and written with the preview beside."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import SHOTS
from tests.browser.test_chat import answers, wait_until_answered

MAKE = """
from localllm.gateway.models import PromptTemplate
made = (("translate", "Translate into {{ language }}:\\n{{ text }}"), ("hello", "Who are you?"))
for name, text in made:
    template = PromptTemplate.objects.create(name=name, description=f"The prompt {name}")
    template.make_current(template.add_version(text))
"""


@pytest.fixture(scope="module", autouse=True)
def prompts(site):
    done = site.manage("shell", "-c", MAKE)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def box(page):
    page.locator("#composer-text").focus()
    return page.locator("#composer-text")


def options(page):
    return page.locator("#prompts [role=option]")


def test_a_prompt_is_chosen_filled_in_and_inserted_by_keyboard(page, box):
    page.keyboard.type("/tra")
    expect(options(page)).to_have_count(1)
    expect(box).to_have_attribute("aria-expanded", "true")
    page.screenshot(path=SHOTS / "prompt-list.png")
    page.keyboard.press("Enter")
    expect(page.get_by_label("language")).to_be_focused()
    page.keyboard.type("German")
    page.keyboard.press("Tab")
    page.keyboard.type("{{ language }}")
    page.screenshot(path=SHOTS / "prompt-insert.png")
    page.get_by_role("button", name="Insert").press("Enter")
    expect(box).to_be_focused()
    expect(box).to_have_value("Translate into German:\n{{ language }}")


def test_a_prompt_without_variables_is_inserted_at_once_and_sent_with_the_next_enter(page, box):
    page.keyboard.type("/")
    expect(options(page)).to_have_count(4)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowDown")
    expect(options(page).first).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Enter")
    expect(box).to_have_value("Who are you?")
    page.keyboard.press("Enter")
    wait_until_answered(page)
    expect(answers(page)).to_have_count(1)


def test_escape_closes_the_list_and_what_is_no_prompt_is_sent_as_it_is(page, box):
    page.keyboard.type("/")
    expect(options(page).first).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#prompts")).to_be_hidden()
    page.keyboard.type("nothing-of-that-name")
    expect(page.locator("#prompts")).to_contain_text("No prompt matches")
    page.keyboard.press("Enter")
    wait_until_answered(page)
    expect(page.locator(".bubble")).to_have_text("/nothing-of-that-name")


def test_the_editor_shows_what_is_wrong_and_then_what_the_model_sees(page, site):
    page.goto(f"{site.url}/prompts/new/")
    page.get_by_label("Prompt", exact=True).fill("Say {{ wo rd }}")
    expect(page.locator("#preview")).to_contain_text("line 1, column 5 is no variable")
    page.get_by_label("Prompt", exact=True).fill("Say {{ word }}")
    page.locator("#preview").get_by_label("word").fill("hello")
    expect(page.locator("#rendered")).to_contain_text("<|im_start|>user\nSay hello<|im_end|>")
    expect(page.locator("#rendered")).to_contain_text("tokens")
    page.screenshot(path=SHOTS / "prompt-editor.png")


def test_a_trial_runs_in_the_background_and_shows_old_and_new_side_by_side(page, site, box):
    page.keyboard.type("What can you do?")
    page.keyboard.press("Enter")
    wait_until_answered(page)
    page.goto(f"{site.url}/prompts/")
    page.get_by_role("link", name="The system prompt of every chat").click()
    page.get_by_role("link", name="Edit").click()
    page.get_by_label("Prompt", exact=True).fill("Count to ten. {{ system_prompt }}")
    page.get_by_label("Ask with it from now on").uncheck()
    page.get_by_role("button", name="Save").click()
    page.get_by_role("link", name="Try").click()
    page.get_by_role("button", name="Begin").click()
    expect(page.locator("#trial")).to_contain_text("complete", timeout=20_000)
    expect(page.get_by_role("heading", name="What can you do?")).to_be_visible()
    expect(page.locator("#trial")).not_to_contain_text("Not asked yet")
    page.screenshot(path=SHOTS / "prompt-trial.png")
    page.get_by_role("button", name="Ask with version 2").click()
    expect(page.get_by_role("status")).to_contain_text("Version 2 is asked with from now on")
