"""What a thinking model wrote before its answer, as a person has it: folded, timed, kept, and not copied."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import NAME, Site
from tests.browser.test_chat import answers, wait_until_answered
from tests.inference.test_thinking import thinking_starter

MAKE = """
from django.contrib.auth.models import User
from chat.models import Conversation
from schemas_app.models import Schema
owner = User.objects.get(username="%s")
schema = Schema.objects.create(owner=owner, slug=Schema.objects.free_slug("kind"), name="Kind")
schema.add_version(text='{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}',
                   max_tokens=900, temperature=9.0)
wild = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": 1}
for _ in range(2):
    print(Conversation.objects.create(owner=owner, schema=schema, **wild).pk)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Its model begins every answer with reasoning; the schema ends that."""
    folder = tmp_path_factory.mktemp("thinking")
    model = thinking_starter(folder / "thinking.gguf")
    with Site(folder / "home", LOCALLLM_MODEL=str(model)) as site:
        yield site


@pytest.fixture(scope="module")
def chats(site):
    """One for each test."""
    done = site.manage("shell", "-v0", "-c", MAKE % NAME)
    assert done.returncode == 0, done.stderr
    return iter(done.stdout.split())


@pytest.fixture
def page(site, chats, open_page):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.goto(f"{site.url}/chat/{next(chats)}/")
    return page


def ask(page):
    page.get_by_label("Message", exact=True).fill("Maya Lindgren lives in Uppsala.")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_count(1)


def test_it_is_folded_with_its_time_and_left_out_of_what_is_copied(page):
    ask(page)
    wait_until_answered(page)
    thought = page.locator(".reasoning")
    expect(thought.locator("summary")).to_have_text(re.compile(r"Thought for \d+ s|Thought for \d+\.\d s"))
    expect(thought.locator("[data-reasoning]")).not_to_be_visible()
    page.get_by_role("button", name="Copy", exact=True).last.click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.lstrip().startswith("{") and thought.locator("[data-reasoning]").text_content() not in copied


def test_a_reload_in_the_middle_keeps_what_was_thought(page, site):
    site.pause()
    ask(page)
    reasoning = page.locator("[data-reasoning]")
    for _ in range(300):
        if len(before := reasoning.text_content() or "") > 20:
            break
        site.run_for_a_moment()
        page.wait_for_timeout(60)
    page.reload()
    expect(reasoning).to_have_text(re.compile(re.escape(before[:20])))
    assert page.locator("[data-live]").count() == 1
    site.go_on()
    wait_until_answered(page)
    assert (reasoning.text_content() or "").startswith(before.rstrip())
