"""The first account: the admin's, made once, and only by who may."""

from __future__ import annotations

import itertools

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client

from localllm.gateway.security.first_run import first_run_code

pytestmark = pytest.mark.django_db

GOOD = {"username": "ada", "password1": "correct horse battery", "password2": "correct horse battery"}


addresses = (f"10.1.0.{n}" for n in itertools.count(1))


@pytest.fixture
def client() -> Client:
    """A browser somewhere else each time: the throttle remembers addresses."""
    return Client(REMOTE_ADDR=next(addresses))


@pytest.fixture
def exposed(settings) -> None:  # type: ignore[no-untyped-def]
    settings.ALLOWED_HOSTS = ["testserver", "llm.example.org"]


@pytest.fixture
def local(settings) -> None:  # type: ignore[no-untyped-def]
    settings.ALLOWED_HOSTS = ["localhost"]


@pytest.fixture
def browser(client: Client) -> Client:
    client.defaults["SERVER_NAME"] = "localhost"
    return client


def setup(browser: Client, **form: str) -> HttpResponse:
    return browser.post("/setup/", GOOD | form)


@pytest.mark.parametrize("path", ["/", "/login/", "/admin/", "/account/password/"])
def test_every_page_leads_to_the_first_run_page(browser: Client, local: None, path: str) -> None:
    response = browser.get(path, follow=True)
    assert response.redirect_chain[-1][0] == "/setup/" and response.status_code == 200


def test_programs_are_told_what_they_need_even_then(browser: Client, local: None) -> None:
    assert browser.get("/v1/models").status_code == 401
    assert browser.get("/health").status_code == 503


def test_the_first_account_is_the_admin_and_is_signed_in(browser: Client, local: None) -> None:
    assert setup(browser)["Location"] == "/"
    assert get_user_model().objects.get(is_superuser=True, is_staff=True).username == "ada"
    assert browser.get("/").status_code == 200


def test_there_is_no_second_first_account(browser: Client, local: None) -> None:
    setup(browser)
    assert Client(SERVER_NAME="localhost").post("/setup/", GOOD | {"username": "eve"}).status_code == 302
    assert list(User.objects.values_list("username", flat=True)) == ["ada"]


def test_a_weak_password_is_refused_with_the_reason(browser: Client, local: None) -> None:
    response = setup(browser, password1="12345", password2="12345")
    assert "too short" in response.content.decode() and not User.objects.exists()


def test_a_server_that_others_reach_asks_for_the_code_on_its_console(client: Client, exposed: None) -> None:
    assert "This is not the code" in setup(client).content.decode()
    assert "This is not the code" in setup(client, code="guess").content.decode()
    assert not User.objects.exists()
    assert setup(client, code=first_run_code())["Location"] == "/"


def test_the_code_cannot_be_guessed_quickly(client: Client, exposed: None) -> None:
    statuses = [setup(client, code=f"guess{n}").status_code for n in range(6)]
    assert statuses == [200] * 5 + [429]


# Signing in


def test_it_signs_in_and_goes_where_one_wanted_to_go(client: Client, django_user_model: type[User]) -> None:
    django_user_model.objects.create_user("ada", password="correct horse battery")
    wanted = client.get("/account/password/")["Location"]
    assert wanted == "/login/?next=/account/password/"
    signed_in = client.post(wanted, {"username": "ada", "password": "correct horse battery"})
    assert signed_in["Location"] == "/account/password/"


def test_it_says_when_to_try_again_after_too_many_wrong_passwords(
    client: Client, django_user_model: type[User]
) -> None:
    django_user_model.objects.create_user("ada", password="correct horse battery")
    wrong = {"username": "ada", "password": "wrong"}
    assert [client.post("/login/", wrong).status_code for _ in range(5)] == [200] * 5
    refused = client.post("/login/", {"username": "ada", "password": "correct horse battery"})
    assert refused.status_code == 429 and refused["Retry-After"] == "1"
    assert "1 second" in refused.content.decode()


def test_a_fragment_asked_for_after_signing_out_sends_the_page_to_the_login(
    client: Client, django_user_model: type[User]
) -> None:
    django_user_model.objects.create_user("ada")
    headers = {"HX-Request": "true", "HX-Current-URL": "http://testserver/chat/"}
    response = client.get("/chats", headers=headers)
    assert response["HX-Redirect"] == "/login/?next=/chat/"


def test_the_admin_pages_have_no_login_of_their_own(client: Client, django_user_model: type[User]) -> None:
    django_user_model.objects.create_user("ada")
    assert client.get("/admin/login/?next=/admin/")["Location"] == "/login/?next=%2Fadmin%2F"


def test_an_account_without_rights_is_told_so_in_the_admin(client: Client, django_user_model: type[User]) -> None:
    client.force_login(django_user_model.objects.create_user("bob"))
    assert client.get("/admin/", follow=True).status_code == 403
