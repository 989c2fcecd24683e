"""The pages of schemas, as a browser without scripts and as htmx see them."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from django.contrib.auth.models import Permission, User
from django.http import HttpResponse
from django.test import AsyncClient
from django.urls import reverse

from localllm.gateway.structured import compiler
from schemas_app.models import Schema

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio(loop_scope="module")]
TEXT = '{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}'
FORM = {"name": "Pet", "text": TEXT, "temperature": "0.3", "max_tokens": "256", "prompt_template": ""}


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def compiling() -> AsyncIterator[None]:
    """The compiler's child belongs to the event loop of this module."""
    yield
    await compiler.close()


@pytest.fixture
def alice() -> User:
    return User.objects.create_user("alice")


@pytest.fixture
def bob() -> User:
    return User.objects.create_user("bob")


@pytest.fixture
def page(alice: User, async_client: AsyncClient) -> AsyncClient:
    async_client.force_login(alice)
    return async_client


@pytest.fixture
def pet(alice: User) -> Schema:
    return made(alice, "Pet")


def made(owner: User | None, name: str, text: str = TEXT, **fields: Any) -> Schema:
    schema = Schema.objects.create(owner=owner, name=name, slug=Schema.objects.free_slug(name), **fields)
    schema.add_version(text=text)
    return schema


def url(name: str, schema: Schema | None = None) -> str:
    return reverse(f"schemas:{name}", args=[schema.pk] if schema else [])


def html(response: HttpResponse) -> str:
    return response.content.decode()


def numbers(schema: Schema) -> list[int]:
    return list(schema.versions.values_list("number", flat=True))


# The list


@pytest.fixture
def others(alice: User, bob: User) -> None:
    made(alice, "Mine", description="An animal at home")
    made(bob, "Theirs")
    made(bob, "For all", is_shared=True)
    made(None, "A receipt", is_shared=True)


async def test_it_lists_own_shared_and_shipped_schemas_and_no_others(page: AsyncClient, others: None) -> None:
    text = html(await page.get(url("index")))
    assert "Mine" in text and "For all" in text and "A receipt" in text and "Theirs" not in text


async def test_it_finds_schemas_by_every_word(page: AsyncClient, others: None) -> None:
    text = html(await page.get(url("index"), {"q": "home mine"}, headers={"HX-Request": "true"}))
    assert "Mine" in text and "For all" not in text and "<nav" not in text


# One schema


async def test_its_page_says_what_is_enforced_and_the_shortest_answer(page: AsyncClient, pet: Schema) -> None:
    text = html(await page.get(url("show", pet)))
    assert "Enforced while the model writes" in text
    assert "{&quot;name&quot;:&quot;&quot;}" in text


async def test_its_page_names_keywords_that_are_checked_afterwards(page: AsyncClient, alice: User) -> None:
    text = '{"type": "array", "items": {"type": "string"}, "uniqueItems": true, "minitems": 1}'
    shown = html(await page.get(url("show", await Schema.objects.aget(pk=(await amade(alice, text)).pk))))
    assert "Enforced in part, checked in full" in shown and "/uniqueItems" in shown
    assert "they mean nothing" in shown and "/minitems" in shown


async def amade(owner: User, text: str) -> Schema:
    schema = await Schema.objects.acreate(owner=owner, name="Made", slug="made")
    await schema.versions.acreate(number=1, text=text)
    return schema


async def test_an_old_version_can_be_read_and_brought_back(page: AsyncClient, pet: Schema) -> None:
    await pet.versions.acreate(number=2, text='{"type": "integer"}')
    assert "This is version 1." in html(await page.get(url("show", pet), {"version": "1"}))
    await page.post(url("roll-back", pet), {"version": "1"})
    last = await pet.versions.afirst()
    assert last is not None and (last.number, last.text) == (3, TEXT)


async def test_rolling_back_to_what_is_current_changes_nothing(page: AsyncClient, pet: Schema) -> None:
    await page.post(url("roll-back", pet), {"version": "1"})
    assert await pet.versions.acount() == 1


async def test_two_versions_are_compared_line_by_line(page: AsyncClient, pet: Schema) -> None:
    await pet.versions.acreate(number=2, text=TEXT.replace("name", "title"), temperature=0.9)
    text = html(await page.get(url("compare", pet), {"from": "1", "to": "2"}))
    assert "<del>{&quot;type&quot;: &quot;object&quot;, &quot;properties&quot;: {&quot;name" in text
    assert "<ins>temperature 0.9</ins>" in text


async def test_a_copy_is_its_makers_own(page: AsyncClient, bob: User) -> None:
    schema = await Schema.objects.acreate(owner=bob, name="Pet", slug="pet", is_shared=True)
    await schema.versions.acreate(number=1, text=TEXT, max_tokens=99)
    response = await page.post(url("duplicate", schema))
    copy = await Schema.objects.select_related("owner").aget(slug="pet-copy")
    assert response["Location"] == url("edit", copy)
    assert copy.owner and copy.owner.username == "alice" and not copy.is_shared
    assert (await copy.versions.aget()).max_tokens == 99


async def test_sharing_needs_the_right_to_change_schemas(page: AsyncClient, alice: User, pet: Schema) -> None:
    assert (await page.post(url("share", pet))).status_code == 403
    await alice.user_permissions.aadd(await Permission.objects.aget(codename="change_schema"))
    assert (await page.post(url("share", pet))).status_code == 302
    await pet.arefresh_from_db()
    assert pet.is_shared


async def test_it_is_deleted_after_a_question(page: AsyncClient, pet: Schema) -> None:
    assert "Delete this schema?" in html(await page.get(url("delete", pet)))
    await page.post(url("delete", pet))
    assert not await Schema.objects.filter(pk=pet.pk).aexists()


# Saving


async def test_a_new_schema_is_named_after_its_name_and_belongs_to_its_maker(page: AsyncClient) -> None:
    response = await page.post(url("new"), FORM)
    schema = await Schema.objects.select_related("owner").aget(slug="pet")
    assert response["Location"] == url("show", schema)
    version = await schema.versions.select_related("author").aget()
    assert schema.owner == version.author and (version.text, version.temperature) == (TEXT, 0.3)


async def test_a_change_makes_a_version_and_no_change_makes_none(page: AsyncClient, pet: Schema) -> None:
    form = FORM | {"slug": pet.slug, "max_tokens": "2048"}
    await page.post(url("edit", pet), form)
    assert await pet.versions.acount() == 1
    await page.post(url("edit", pet), form | {"temperature": "1"})
    assert [version.temperature async for version in pet.versions.all()] == [1.0, 0.3]


async def test_line_ends_of_a_browser_are_no_change(page: AsyncClient, pet: Schema) -> None:
    text = TEXT.replace(", ", ",\n")
    await pet.versions.acreate(number=2, text=text, max_tokens=256)
    await page.post(url("edit", pet), FORM | {"text": text.replace("\n", "\r\n")})
    assert await pet.versions.acount() == 2


REFUSED = {
    '{"type": "object",}': "is not JSON: .* line 1, column 1[89]",
    "false": "can satisfy|no value|unsatisfiable|No ",
    '{"type": "intger"}': "keyword &#x27;type&#x27;, at /type, line 1",
    '{"$ref": "https://example.org/a.json"}': "nothing is fetched",
    '{"properties": {"a": {"pattern": "(?=x)y(?<=z)"}}}': "/properties/a/pattern",
    "[" * 1000 + "]" * 1000: "brackets deep",
    '{"not":' * 100 + "{}" + "}" * 100: "levels deep",
    json.dumps({"enum": ["x" * 300_000]}): "at most 262,144 are allowed",
    "": "This field is required",
    TEXT + "\0": "Null characters",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:20])
async def test_a_refused_schema_is_not_saved_and_the_page_says_why(page: AsyncClient, text: str) -> None:
    response = await page.post(url("new"), FORM | {"text": text})
    assert response.status_code == 400
    assert re.search(REFUSED[text], html(response))
    assert not await Schema.objects.filter(slug="pet").aexists()


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ('{"name": 3}', "The output of example 2 breaks the schema at /name: 3 is not of type"),
        ('{"name": "Rex"', "The output of example 2 is not JSON"),
        ("[" * 5000, "The output of example 2 is not JSON"),
    ],
)
async def test_examples_must_satisfy_the_schema(page: AsyncClient, output: str, why: str) -> None:
    examples = {"examples-input": ["Rex barks.", "Tom."], "examples-output": ['{"name": "Rex"}', output]}
    response = await page.post(url("new"), FORM | examples)
    assert response.status_code == 400 and why in html(response)
    assert "Rex barks." in html(response)


async def test_examples_are_kept_without_empty_rows(page: AsyncClient) -> None:
    examples = {"examples-input": ["", "Rex barks."], "examples-output": ["", '{"name": "Rex"}']}
    await page.post(url("new"), FORM | examples)
    version = await (await Schema.objects.aget(slug="pet")).versions.aget()
    assert version.examples == [{"input": "Rex barks.", "output": '{"name": "Rex"}'}]


async def test_a_prompt_template_must_say_where_the_text_goes(page: AsyncClient) -> None:
    response = await page.post(url("new"), FORM | {"prompt_template": "Describe it."})
    assert "It says nowhere where the text goes." in html(response)


# While writing


async def test_the_check_answers_with_a_report(page: AsyncClient) -> None:
    assert "Enforced while the model writes" in html(await page.post(url("check"), {"text": TEXT}))


@pytest.mark.parametrize(
    "text", [text for text in REFUSED if text.strip("\0") and "\0" not in text], ids=lambda t: t[:20]
)
async def test_the_check_says_what_cannot_be_used(page: AsyncClient, text: str) -> None:
    response = await page.post(url("check"), {"text": text})
    assert response.status_code == 200 and "This cannot be used." in html(response)


async def test_the_check_points_to_the_place(page: AsyncClient) -> None:
    text = '{\n  "properties": {\n    "a": {"type": "intger"}\n  }\n}'
    assert 'data-line="3" data-column="19"' in html(await page.post(url("check"), {"text": text}))


@pytest.mark.parametrize(("headers", "said"), [({}, "Too much at once"), ({"HX-Request": "true"}, "at most 2 MB")])
async def test_ten_megabytes_are_answered_in_words(page: AsyncClient, headers: dict[str, str], said: str) -> None:
    response = await page.post(url("check"), {"text": "x" * (10 << 20)}, headers=headers)
    assert response.status_code == 413 and said in html(response)


async def draft(page: AsyncClient, **fields: object) -> str:
    return html(await page.post(url("draft"), fields))


async def test_rows_write_the_text(page: AsyncClient) -> None:
    columns = {"name": "stars", "kind": "integer", "required": "1", "description": "", "least": "1", "most": "5"}
    rows = {f"field-{name}": [value] for name, value in (columns | {"choices": ""}).items()}
    text = await draft(page, **{"from": "rows"}, **rows)
    assert "&quot;maximum&quot;: 5" in text and 'id="id_text"' in text


async def test_the_text_fills_the_rows(page: AsyncClient) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": [],
        "additionalProperties": False,
    }
    assert 'value="ok"' in await draft(page, **{"from": "text"}, text=json.dumps(schema))
    assert "says more than rows can" in await draft(page, **{"from": "text"}, text=TEXT)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("example", '{"stars": 3}'),
        ("pydantic", "class A(BaseModel):\n    stars: int"),
        ("json_schema", '{"properties": {"stars": {}}}'),
    ],
)
async def test_a_draft_is_made_from_what_is_pasted(page: AsyncClient, source: str, text: str) -> None:
    assert "&quot;stars&quot;" in await draft(page, **{"from": source}, source=text)


async def test_a_draft_is_made_from_another_schema_if_it_may_be_seen(page: AsyncClient, pet: Schema, bob: User) -> None:
    assert "&quot;name&quot;" in await draft(page, **{"from": "schema"}, schema=str(pet.pk))
    await Schema.objects.filter(pk=pet.pk).aupdate(owner=bob)
    assert (await page.post(url("draft"), {"from": "schema", "schema": str(pet.pk)})).status_code == 404


@pytest.mark.parametrize("source", ["example", "pydantic", "json_schema", "schema", "rows", "text", "", "nothing"])
@pytest.mark.parametrize("text", ["", "\ud83d\ude00", "\0", "[" * 5000, "x" * 300_000])
async def test_no_source_breaks_the_page(page: AsyncClient, source: str, text: str) -> None:
    text = text.encode("utf-16", "surrogatepass").decode("utf-16")
    response = await page.post(url("draft"), {"from": source, "source": text, "text": text, "schema": text})
    assert response.status_code in (200, 404)
