"""Schemas in the admin: through the same form, with versions that cannot be changed."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from django.contrib.auth.models import User
from django.test import AsyncClient
from django.urls import reverse

from localllm.gateway.structured import compiler
from schemas_app.models import Schema

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio(loop_scope="module")]
INLINE = {"versions-TOTAL_FORMS": "0", "versions-INITIAL_FORMS": "0"}
FORM = {"name": "Pet", "text": '{"type": "string"}', "temperature": "0.3", "max_tokens": "9", **INLINE}


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def compiling() -> AsyncIterator[None]:
    """The compiler's child belongs to the event loop of this module."""
    yield
    await compiler.close()


@pytest.fixture
def page(admin_user: User, async_client: AsyncClient) -> AsyncClient:
    async_client.force_login(admin_user)
    return async_client


async def test_an_admin_adds_a_schema_with_its_first_version(page: AsyncClient, admin_user: User) -> None:
    response = await page.post(reverse("admin:schemas_app_schema_add"), FORM)
    version = await (await Schema.objects.aget(slug="pet")).versions.aget()
    assert response.status_code == 302
    assert (version.number, version.max_tokens, version.author_id) == (1, 9, admin_user.pk)


async def test_a_change_in_the_admin_makes_a_version(page: AsyncClient) -> None:
    schema = await Schema.objects.acreate(name="Pet", slug="pet")
    await schema.versions.acreate(number=1, text="{}")
    url = reverse("admin:schemas_app_schema_change", args=[schema.pk])
    forged = {"versions-0-text": "true", "versions-TOTAL_FORMS": "1", "versions-INITIAL_FORMS": "1"}
    assert (await page.get(url)).status_code == 200
    await page.post(url, FORM | forged)
    assert [version.text async for version in schema.versions.all()] == ['{"type": "string"}', "{}"]


async def test_a_refused_schema_is_refused_here_too(page: AsyncClient) -> None:
    response = await page.post(reverse("admin:schemas_app_schema_add"), FORM | {"text": '{"type": 1}'})
    assert "keyword &#x27;type&#x27;" in response.content.decode()
    assert not await Schema.objects.filter(slug="pet").aexists()
