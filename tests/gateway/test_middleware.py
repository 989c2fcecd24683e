"""Django's middlewares in the event loop: no thread where nothing is to be asked, and nothing of theirs is lost."""

from __future__ import annotations

import pytest
from asgiref.sync import SyncToAsync
from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient
from django.urls import path

from localllm.gateway import database
from localllm.gateway.models import ApiKey
from localllm.urls import urlpatterns as all_urls

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio(loop_scope="package")]


@login_not_required
def say(request: HttpRequest) -> HttpResponse:
    messages.success(request, "It was kept.")
    return HttpResponse("said")


@login_not_required
def hear(request: HttpRequest) -> HttpResponse:
    return HttpResponse(", ".join(map(str, messages.get_messages(request))))


urlpatterns = [path("say", say), path("hear", hear), *all_urls]


@pytest.fixture
def in_threads(monkeypatch):
    """The names of what was called in a thread."""
    names, run = [], SyncToAsync.__call__

    def noted(self, *args, **kwargs):
        names.append(getattr(self.func, "__qualname__", ""))
        return run(self, *args, **kwargs)

    monkeypatch.setattr(SyncToAsync, "__call__", noted)
    return names


def steps(names):
    return [name for name in names if ".process_" in name]


async def ada():
    return await database.write(lambda: User.objects.create_superuser("ada", "", "a long password"))


async def test_the_middlewares_of_an_api_request_take_no_thread(in_threads):
    user = await ada()
    _, key = await database.write(lambda: ApiKey.objects.issue(user, "test"))
    answer = await AsyncClient().get("/v1/models", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200 and steps(in_threads) == []


async def test_a_page_asks_in_a_thread_who_comes(in_threads):
    answer = await AsyncClient().get("/models/")
    assert answer.status_code == 302 and steps(in_threads) == ["LoginRequiredMiddleware.process_view"]


async def test_a_session_that_changed_is_stored():
    user, client = await ada(), AsyncClient()
    form = {"username": "ada", "password": "a long password"}
    answer = await client.post("/login/", form)
    assert answer.status_code == 302 and answer.cookies["sessionid"].value
    session = await database.read(Session.objects.get)
    assert session.get_decoded()["_auth_user_id"] == str(user.pk)
    assert (await client.get("/models/")).status_code == 200
    assert (await client.post("/logout/")).status_code == 302
    assert (await client.get("/models/")).status_code == 302


@pytest.mark.urls(__name__)
async def test_a_message_reaches_the_next_page_and_only_that():
    client = AsyncClient()
    await client.get("/say")
    heard = [(await client.get("/hear")).content.decode() for _ in range(2)]
    assert heard == ["It was kept.", ""]


@pytest.mark.parametrize("method", ["post", "put", "delete"])
async def test_a_form_without_its_token_is_refused(method):
    client = AsyncClient(enforce_csrf_checks=True)
    assert (await getattr(client, method)("/login/")).status_code == 403


async def test_the_headers_of_every_answer_are_there():
    answer = await AsyncClient().get("/login/")
    assert answer["X-Frame-Options"] == "DENY" and answer["X-Content-Type-Options"] == "nosniff"
    assert (await AsyncClient().get("/models")).status_code == 301
