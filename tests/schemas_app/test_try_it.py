"""Trying a schema: the stream of a result on a real server, and the rows that are kept of it."""

from __future__ import annotations

import json
import re
import urllib.error
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from localllm.inference.json_schema.document import Document
from localllm.inference.json_schema.validator import Validator
from schemas_app.models import MAX_KEPT, Schema, SchemaVersion, TryOut
from tests.browser_client import Browser
from tests.gateway.test_api import until, usage_rows
from tests.server import ADMIN, PASSWORD, Server

TEXT = "😀\nMaya lives in Uppsala."
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "city": {"const": "Uppsala"}},
    "required": ["name", "city"],
    "additionalProperties": False,
}
HOPELESS: dict[str, Any] = {
    "type": "array",
    "items": {"enum": [*range(9)]},
    "uniqueItems": True,
    "minItems": 9,
    "maxItems": 9,
}
MAKE = """
import json
from django.contrib.auth.models import User
from schemas_app.models import Schema
schema = Schema.objects.create(slug="tried", name="Tried", owner=User.objects.get(username=%r))
for each in %r:
    schema.add_version(text=json.dumps(each), max_tokens=80)
print(schema.pk)
"""


# On a real server


@pytest.fixture(scope="module")
def schema_id(server: Server) -> str:
    done = server.manage("shell", "-v0", "-c", MAKE % (ADMIN, [PERSON, HOPELESS]))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def browser(server: Server) -> Browser:
    return Browser(server.url, ADMIN, PASSWORD)


def run(browser: Browser, schema_id: str, **fields: str) -> list[dict[str, Any]]:
    """The bodies of the events."""
    asked = {"input": TEXT.replace("\n", "\r\n"), "version": "1", "model": "starter", **fields}
    with browser.open(f"/schemas/{schema_id}/run/", **asked) as response:
        *events, end = response.read().decode().strip().split("\n\n")
    assert end == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_the_last_event_is_a_kept_result_that_says_what_vouches_for_it(browser: Browser, schema_id: str) -> None:
    *before, last = run(browser, schema_id)
    assert before[0] == {"stage": "Preparing the schema"} and before[-1]["stage"] == "Writing"
    assert "Every field was enforced" in last["html"]
    assert all(re.search(r'data-try-out="[0-9a-f-]{36}"', last[name]) for name in ("html", "entry"))
    text = re.search(r"<code>(.*?)</code>", last["html"], re.DOTALL)[1].replace("&quot;", '"')  # type: ignore[index]
    assert Validator(Document(json.dumps(PERSON))).is_valid(json.loads(text))


def test_a_value_says_where_the_text_says_it_in_code_points(browser: Browser, schema_id: str) -> None:
    start = TEXT.index("Uppsala")
    city = re.search(r'<span[^>]* data-path="/city"[^>]*>', run(browser, schema_id)[-1]["html"])
    assert city and f'data-span="{start} {start + 7}"' in city[0]


def test_what_is_only_checked_afterwards_is_shown_as_a_draft_and_as_no_result(browser: Browser, schema_id: str) -> None:
    *before, last = run(browser, schema_id, version="2")
    assert any("draft, not checked yet" in body.get("html", "") for body in before)
    assert any(body["stage"].startswith("Attempt 3") for body in before)
    assert last["stage"] == "No result" and "too short" in last["html"] and "entry" not in last


def test_it_is_in_the_usage_log_with_the_version(server: Server, browser: Browser, schema_id: str) -> None:
    where = "source = 'schemas' AND schema_version_id IS NOT NULL AND user_id IS NOT NULL"
    before = usage_rows(server, where)
    run(browser, schema_id)
    assert until(lambda: usage_rows(server, where) == before + 1)


@pytest.mark.parametrize("wrong", [{"input": " "}, {"version": "9"}, {"model": "gpt"}], ids=str)
def test_what_cannot_be_run_is_said_in_words(browser: Browser, schema_id: str, wrong: dict[str, str]) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        run(browser, schema_id, **wrong)
    assert caught.value.status == 400 and json.load(caught.value)["error"]["message"].endswith(".")


# What is kept


@pytest.fixture
def owner(db: None) -> User:
    return User.objects.create_user("owner")


@pytest.fixture
def version(owner: User) -> SchemaVersion:
    return Schema.objects.create(owner=owner, slug="s", name="S", is_shared=True).add_version(text="{}")


def keep(user: User, version: SchemaVersion, text: str = '{"a": "<b>"}') -> TryOut:
    account = {
        "guarantee": "validated",
        "unenforced": [{"path": "", "keyword": "not"}],
        "fields": {"/a": {"probability": 0.2, "source": [0, 1]}},
        "finish_reason": "stop",
        "usage": {},
    }
    return TryOut.objects.keep(user, version, model_name="tiny", input="b <i>", text=text, account=account)


def test_a_kept_result_is_shown_again(client: Client, owner: User, version: SchemaVersion) -> None:
    kept = keep(owner, version)
    client.force_login(owner)
    page = client.get(reverse("schemas:try-it", args=[version.schema.pk])).content.decode()
    assert reverse("schemas:try-out", args=[kept.pk]) in page and "b &lt;i&gt;" in page
    shown = client.get(reverse("schemas:try-out", args=[kept.pk])).content.decode()
    assert "only then: not" in shown and "check this (20 %)" in shown and "&lt;b&gt;" in shown


def test_it_is_its_owners_alone_also_where_the_schema_is_shared(
    client: Client, owner: User, version: SchemaVersion
) -> None:
    kept = keep(owner, version)
    client.force_login(User.objects.create_user("other"))
    page = client.get(reverse("schemas:try-it", args=[version.schema.pk]))
    assert page.status_code == 200 and str(kept.pk) not in page.content.decode()
    assert client.post(reverse("schemas:try-out-delete", args=[kept.pk])).status_code == 404


def test_the_oldest_go_when_there_are_too_many(owner: User, version: SchemaVersion) -> None:
    first, other = keep(owner, version), keep(User.objects.create_user("other"), version)
    for _ in range(MAX_KEPT):
        keep(owner, version)
    assert not TryOut.objects.filter(pk=first.pk).exists() and TryOut.objects.filter(pk=other.pk).exists()
    assert TryOut.objects.owned_by(owner).count() == MAX_KEPT
