"""What an admin can see and do, and what nobody can."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from pytest_django.fixtures import Settings

from chat.models import Conversation
from localllm.gateway.models import ApiKey, LanguageModel, PromptTemplate, UsageLog

pytestmark = pytest.mark.django_db


@pytest.fixture
def model(tmp_path: Path) -> LanguageModel:
    path = Path(shutil.copy(settings.STARTER_MODEL, tmp_path / "model.gguf"))
    return LanguageModel.objects.register(path)


@pytest.fixture
def conversation(admin_user: User) -> Conversation:
    conversation = Conversation.objects.create(owner=admin_user, title="Secret plans")
    conversation.send("c1", "Where is the treasure?")
    return conversation


@pytest.fixture
def usage(admin_user: User, model: LanguageModel) -> UsageLog:
    return UsageLog.objects.create(
        source="api", user=admin_user, model=model, model_name=model.name, model_sha256=model.sha256,
        provider="llama.cpp", engine_build="1", finish_reason="stop",
    )  # fmt: skip


LISTS = [
    "auth_user",
    "chat_conversation",
    "chat_message",
    "chat_summary",
    "gateway_languagemodel",
    "gateway_fileversion",
    "gateway_usagelog",
    "gateway_apikey",
]


@pytest.mark.parametrize("name", LISTS)
def test_every_list_can_be_opened_and_searched(
    admin_client: Client, conversation: Conversation, usage: UsageLog, name: str
) -> None:
    assert admin_client.get(reverse(f"admin:{name}_changelist"), {"q": "e"}).status_code == 200


def test_conversations_are_filtered_by_folder(admin_client: Client, conversation: Conversation) -> None:
    conversation.move_to_folder("Islands")
    address = reverse("admin:chat_conversation_changelist")
    assert "Secret plans" in admin_client.get(address, {"folder": "Islands"}).content.decode()
    assert "Secret plans" not in admin_client.get(address, {"folder": "Seas"}).content.decode()


def test_every_row_can_be_opened(
    admin_client: Client, admin_user: User, conversation: Conversation, usage: UsageLog
) -> None:
    key, _ = ApiKey.objects.issue(admin_user, "laptop")
    rows = [admin_user, conversation, conversation.leaf, usage, usage.model, key]
    for row in rows:
        url = reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])
        assert admin_client.get(url).status_code == 200, url


def test_the_text_of_messages_cannot_be_changed(admin_client: Client, conversation: Conversation) -> None:
    question = conversation.messages.get(role="user")
    url = reverse("admin:chat_message_change", args=[question.pk])
    assert admin_client.post(url, {"text": "forged"}).status_code == 403
    assert "Where is the treasure?" in admin_client.get(url).content.decode()


@pytest.mark.parametrize("action", ["change", "delete"])
def test_the_usage_log_cannot_be_changed(admin_client: Client, usage: UsageLog, action: str) -> None:
    url = reverse(f"admin:gateway_usagelog_{action}", args=[usage.pk])
    assert admin_client.post(url, {"post": "yes"}).status_code == 403


def test_a_user_can_be_deleted_with_what_is_theirs(admin_client: Client, conversation: Conversation) -> None:
    owner = User.objects.create_user("bob")
    Conversation.objects.update(owner=owner)
    admin_client.post(reverse("admin:auth_user_delete", args=[owner.pk]), {"post": "yes"})
    assert not Conversation.objects.exists() and not User.objects.filter(username="bob").exists()


# Models


@pytest.mark.django_db(transaction=True)
def test_a_model_is_tried_out_before_it_is_added(
    admin_client: Client, model: LanguageModel, settings: Settings
) -> None:
    path = Path(model.path).with_name("second.gguf")
    settings.MODEL_ROOTS = [path.parent]
    shutil.copy(model.path, path)
    url = reverse("admin:gateway_languagemodel_add")
    assert admin_client.post(url, {"path": str(path), "name": "second"}).status_code == 302
    assert LanguageModel.objects.get(name="second").description.endswith("Q8_0")


@pytest.mark.django_db(transaction=True)
def test_a_file_that_is_no_model_is_refused_on_the_form(
    admin_client: Client, tmp_path: Path, settings: Settings
) -> None:
    settings.MODEL_ROOTS = [tmp_path]
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    url = reverse("admin:gateway_languagemodel_add")
    page = admin_client.post(url, {"path": str(tmp_path / "broken.gguf")}).content.decode()
    assert "broken.gguf" in page and not LanguageModel.objects.exists()


def test_adding_models_needs_the_right_to_it(client: Client) -> None:
    client.force_login(User.objects.create_user("bob", is_staff=True))
    assert client.get(reverse("admin:gateway_languagemodel_add")).status_code == 403


@pytest.mark.django_db(transaction=True)
def test_another_model_is_made_the_default(admin_client: Client, model: LanguageModel) -> None:
    path = Path(model.path).with_name("second.gguf")
    second = LanguageModel.objects.register(Path(shutil.copy(model.path, path)))
    data = {"action": "make_default", "_selected_action": [second.pk]}
    admin_client.post(reverse("admin:gateway_languagemodel_changelist"), data)
    assert LanguageModel.objects.default() == second


@pytest.mark.django_db(transaction=True)
def test_another_model_is_deleted_with_its_versions(admin_client: Client, model: LanguageModel) -> None:
    second = LanguageModel.objects.register(Path(shutil.copy(model.path, Path(model.path).with_name("second.gguf"))))
    admin_client.post(reverse("admin:gateway_languagemodel_delete", args=[second.pk]), {"post": "yes"})
    assert not LanguageModel.objects.filter(pk=second.pk).exists() and Path(second.path).exists()


@pytest.mark.django_db(transaction=True)
def test_a_version_serves_again_or_is_removed(admin_client: Client, model: LanguageModel) -> None:
    other = Path(shutil.copy(model.path, Path(model.path).with_name("other.gguf")))
    older, newer = model.current_file, model.take_over(LanguageModel.objects.register(other))
    url = reverse("admin:gateway_fileversion_changelist")
    admin_client.post(url, {"action": "serve", "_selected_action": [newer.pk]})
    assert LanguageModel.objects.get(pk=model.pk).path == str(other)
    admin_client.post(url, {"action": "remove", "_selected_action": [older.pk, newer.pk]})
    assert list(model.files.all()) == [newer]


def test_loading_is_a_permission_of_its_own(client: Client, model: LanguageModel) -> None:
    bob = User.objects.create_user("bob", is_staff=True)
    bob.user_permissions.add(*Permission.objects.filter(codename__in=["view_languagemodel", "load_languagemodel"]))
    client.force_login(bob)
    page = client.get(reverse("admin:gateway_languagemodel_changelist")).content.decode()
    assert "Unload from memory" in page and "Check the file" not in page


def test_the_default_model_is_not_disabled(admin_client: Client, model: LanguageModel) -> None:
    data = {"action": "disable", "_selected_action": [model.pk]}
    admin_client.post(reverse("admin:gateway_languagemodel_changelist"), data)
    assert LanguageModel.objects.get(pk=model.pk).is_enabled


def test_the_default_model_cannot_be_deleted(admin_client: Client, model: LanguageModel) -> None:
    url = reverse("admin:gateway_languagemodel_delete", args=[model.pk])
    assert admin_client.post(url, {"post": "yes"}).status_code == 403
    data = {"action": "delete_selected", "_selected_action": [model.pk], "post": "yes"}
    admin_client.post(reverse("admin:gateway_languagemodel_changelist"), data)
    assert LanguageModel.objects.filter(pk=model.pk).exists()


# Keys


def test_a_key_is_shown_once_and_works(admin_client: Client, admin_user: User) -> None:
    url = reverse("admin:gateway_apikey_add")
    response = admin_client.post(url, {"name": "laptop", "user": admin_user.pk}, follow=True)
    found = re.search(r"sk-[\w-]{43}", response.content.decode())
    assert found and "no-store" in response["Cache-Control"]
    key = ApiKey.objects.authenticate(found[0])
    assert (
        key and found[0] not in admin_client.get(reverse("admin:gateway_apikey_change", args=[key.pk])).content.decode()
    )


def test_a_revoked_key_stops_working(admin_client: Client, admin_user: User) -> None:
    key, text = ApiKey.objects.issue(admin_user, "laptop")
    data = {"action": "revoke", "_selected_action": [key.pk]}
    admin_client.post(reverse("admin:gateway_apikey_changelist"), data)
    assert ApiKey.objects.authenticate(text) is None


def test_prompts_are_read_there_and_changed_on_their_page(admin_client: Client) -> None:
    template = PromptTemplate.objects.get(name="title")
    page = admin_client.get(reverse("admin:gateway_prompttemplate_change", args=[template.pk])).content.decode()
    assert "Write a title of at most six words" in page and template.get_absolute_url() in page
    assert admin_client.get(reverse("admin:gateway_prompttemplate_add")).status_code == 403
