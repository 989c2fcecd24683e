"""The pages of installed models: what everybody sees, what needs a permission, and what becomes of files."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.contrib.messages.storage.fallback import FallbackStorage
from django.test import Client, RequestFactory
from django.urls import reverse

from chat.models import Conversation
from localllm.gateway import database
from localllm.gateway.api.chat_request import ChatCompletionBody
from localllm.gateway.downloads import store
from localllm.gateway.models import LanguageModel, UsageLog
from localllm.gateway.models.model_file import model_file
from localllm.gateway.pages import models
from localllm.gateway.pages.model_form import ModelForm
from localllm.gateway.presets import presets

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def default(tmp_path: Path) -> LanguageModel:
    return a_model(tmp_path / "default.gguf", name="main")


@pytest.fixture
def model(default: LanguageModel, tmp_path: Path) -> LanguageModel:
    return a_model(tmp_path / "second.gguf", name="second", title="Second")


@pytest.fixture
def stored(default: LanguageModel, tmp_path: Path, settings: Any) -> LanguageModel:
    """A model whose file was downloaded."""
    settings.HOME = tmp_path / "home"
    source = tmp_path / "source.gguf"
    source.write_bytes(Path(default.path).read_bytes() + b"\0")
    path = store().folder / f"{model_file.sha256(source)}.gguf"
    path.parent.mkdir(parents=True)
    source.rename(path)
    return LanguageModel.objects.register(path, name="stored", file_name="stored.gguf")


@pytest.fixture
def reader(client: Client) -> Client:
    client.force_login(User.objects.create_user("bob"))
    return client


def a_model(path: Path, **fields: Any) -> LanguageModel:
    return LanguageModel.objects.register(Path(shutil.copy(settings.STARTER_MODEL, path)), **fields)


def page(client: Client, name: str, model: LanguageModel) -> str:
    return client.get(reverse(f"models:{name}", args=[model.name])).content.decode()


def do(client: Client, verb: str, model: LanguageModel, /, **form: Any) -> str:
    """What the page says after it."""
    return client.post(reverse(f"models:{verb}", args=[model.name]), form, follow=True).content.decode()


def filled_in(model: LanguageModel, **changes: Any) -> dict[str, Any]:
    """The form of settings as a browser would send it."""
    form = ModelForm(instance=model)
    values = {field.name: field.value() for field in form} | changes
    sent = {name: value for name, value in values.items() if value is not None and value is not False}
    return {name: "\n".join(value) if isinstance(value, list) else value for name, value in sent.items()}


# What is shown


def test_everybody_sees_which_models_there_are_and_may_change_none(reader: Client, model: LanguageModel) -> None:
    text = reader.get(reverse("models:index")).content.decode()
    assert "Second" in text and "Not loaded" in text and "default</span>" in text
    assert reverse("models:load", args=["second"]) not in text


def test_the_path_is_for_those_with_the_permission(
    reader: Client, admin_user: User, admin_client: Client, model: LanguageModel
) -> None:
    assert model.path in page(admin_client, "show", model)
    reader.force_login(User.objects.get(username="bob"))
    assert model.path not in page(reader, "show", model) and model.sha256 in page(reader, "show", model)


def test_predicted_and_measured_memory_stand_side_by_side(reader: Client, model: LanguageModel) -> None:
    LanguageModel.objects.filter(pk=model.pk).update(predicted_bytes=2_000_000_000, measured_bytes=2_100_000_000)
    text = page(reader, "show", model)
    assert "2.0 GB" in text and "2.1 GB" in text and "4.8 % less than measured" in text


def test_it_leads_to_a_chat_with_the_model(reader: Client, model: LanguageModel) -> None:
    address = f"{reverse('chat:new')}?model=second"
    assert address in page(reader, "show", model)
    assert "Second" in reader.get(address).content.decode()
    LanguageModel.objects.filter(pk=model.pk).update(is_enabled=False)
    assert address not in page(reader, "show", model)


def test_the_window_is_what_the_model_was_trained_on_at_most(reader: Client, model: LanguageModel) -> None:
    text = page(reader, "show", model)
    assert "1,024 tokens for each conversation (set: 4,096), trained on 1,024" in text and "im_start" in text


def test_the_list_shows_that_window_too(reader: Client, model: LanguageModel) -> None:
    assert model.n_ctx == 4096
    assert reader.get(reverse("models:index")).content.decode().count("1,024 tokens × 4") == 2


def test_a_file_that_is_gone_is_said_and_the_page_still_shown(reader: Client, model: LanguageModel) -> None:
    Path(model.path).unlink()
    assert "cannot be read" in page(reader, "show", model)


def test_who_uses_it_is_for_those_who_may_read_the_usage_log(
    admin_user: User, admin_client: Client, default: LanguageModel
) -> None:
    UsageLog.objects.create(
        user=User.objects.create_user("carol"), model=default, completion_tokens=12, finish_reason="stop"
    )
    Conversation.objects.create(owner=admin_user)
    assert "carol" in page(admin_client, "show", default) and "Chats of" in page(admin_client, "show", default)
    admin_client.force_login(User.objects.create_user("bob"))
    assert "1 request in the last 7 days" in page(admin_client, "show", default)
    assert "carol" not in page(admin_client, "show", default)


# Permissions


def test_loading_is_a_permission_of_its_own(reader: Client, model: LanguageModel) -> None:
    User.objects.get(username="bob").user_permissions.add(Permission.objects.get(codename="load_languagemodel"))
    assert reverse("models:load", args=["second"]) in page(reader, "show", model)
    assert reader.get(reverse("models:settings", args=["second"])).status_code == 403


@pytest.mark.parametrize("verb", ["load", "unload", "make-default", "replace", "roll-back", "check", "delete"])
def test_a_verb_needs_its_permission(reader: Client, model: LanguageModel, verb: str) -> None:
    assert reader.post(reverse(f"models:{verb}", args=["second"])).status_code == 403


# Settings


def test_settings_are_saved(admin_client: Client, model: LanguageModel) -> None:
    form = filled_in(model, n_ctx=512, kv_type="q8_0", stop="END\n###", note="For drafts", is_preloaded="on")
    assert "Second was saved." in do(admin_client, "settings", model, **form)
    model.refresh_from_db()
    assert (model.n_ctx, model.kv_type, model.stop, model.note) == (512, "q8_0", ["END", "###"], "For drafts")


def test_a_model_with_a_dot_in_its_name_is_set_up_like_any_other(admin_client: Client, tmp_path: Path) -> None:
    model = a_model(tmp_path / "Qwen2.5-0.5B-Instruct-Q4_K_M.gguf", n_ctx=512)
    assert model.name == "qwen2.5-0.5b-instruct-q4_k_m"
    text = do(admin_client, "settings", model, **filled_in(model, temperature=0.2))
    assert "qwen2.5-0.5b-instruct-q4_k_m was saved." in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_ctx": 0}, "it must be from 64 to"),
        ({"num_slots": 65}, "It is 65; it must be from 1 to 64."),
        ({"temperature": 3}, "it must be from 0 to 2."),
        ({"rope_scaling": "yarn"}, "to stretch the window it must be over 1."),
        ({"kv_type": "q4_0", "flash_attention": "off"}, "without flash attention llama.cpp takes f16 only."),
        ({"stop": "a\nb\nc\nd\ne"}, "These are 5 strings; give at most 4"),
        ({"name": "default"}, "Choose another name."),
        ({"name": "main"}, "already exists."),
        ({"name": ".."}, "Use letters without accents"),
        ({"name": "a/b"}, "Use letters without accents"),
    ],
)
def test_impossible_settings_are_refused_with_a_sentence(
    admin_client: Client, model: LanguageModel, changes: dict[str, Any], says: str
) -> None:
    before = LanguageModel.objects.filter(pk=model.pk).values().get()
    text = do(admin_client, "settings", model, **filled_in(model, **changes))
    assert says in text and "Not saved" in text
    assert LanguageModel.objects.filter(pk=model.pk).values().get() == before


def test_what_this_machine_can_never_hold_is_refused(admin_client: Client, model: LanguageModel) -> None:
    path, trained = Path(model.path), b"llama.context_length" + struct.pack("<I", 4)
    content = path.read_bytes()
    path.write_bytes(content.replace(trained + struct.pack("<I", 1024), trained + struct.pack("<I", 1 << 27)))
    model = LanguageModel.objects.register(path)
    text = do(admin_client, "settings", model, **filled_in(model, n_ctx=1 << 26, num_slots=64))
    assert "Make the window smaller, or use fewer slots." in text


def test_the_default_model_cannot_be_disabled(admin_client: Client, default: LanguageModel) -> None:
    form = filled_in(default)
    del form["is_enabled"]
    assert "Make another one the default first." in do(admin_client, "settings", default, **form)


@pytest.mark.parametrize("name", [each.name for each in presets()])
def test_a_preset_fills_in_the_form_and_saves_nothing(admin_client: Client, model: LanguageModel, name: str) -> None:
    text = do(admin_client, "settings", model, **filled_in(model, n_ctx=777, preset=name))
    assert "Nothing is saved yet." in text and "Not saved." not in text and 'value="777"' not in text
    assert LanguageModel.objects.get(pk=model.pk).engine_settings == model.engine_settings


def test_the_account_follows_the_form(admin_client: Client, model: LanguageModel) -> None:
    few, many = (do(admin_client, "settings-fit", model, **filled_in(model, num_slots=number)) for number in (1, 64))
    assert "each of 1 conversation<" in few.replace("</p>", "<") and "each of 64 conversations" in many
    assert "Slots: It is 99" in do(admin_client, "settings-fit", model, **filled_in(model, num_slots=99))


@pytest.mark.parametrize(
    ("body", "stop"),
    [
        ({}, ("END",)),
        ({"stop": "###"}, ("###",)),
        ({"stop": []}, ()),
        ({"response_format": {"type": "json_object"}}, ()),
    ],
)
def test_an_api_client_gets_the_stop_strings_of_the_model_unless_it_says_otherwise(
    model: LanguageModel, body: dict[str, Any], stop: tuple[str, ...]
) -> None:
    model.stop = ["END"]
    asked = ChatCompletionBody.model_validate({"messages": [{"role": "user", "content": "Hello"}], **body})
    assert asked.to_request(model, "user:1").params.stop == stop


def test_a_model_that_is_deleted_under_a_verb_is_said_to_be_gone(rf: RequestFactory, model: LanguageModel) -> None:
    async def somebody_deletes_it(model: LanguageModel) -> None:
        await database.write(LanguageModel.objects.filter(pk=model.pk).delete)

    request = rf.post("/")
    request.session = {}  # type: ignore[assignment]
    request._messages = FallbackStorage(request)  # type: ignore[attr-defined]
    response = models._do(request, model.name, somebody_deletes_it, "{} is loading.")  # type: ignore[arg-type]
    assert response["Location"] == reverse("models:index")
    assert [str(message) for message in get_messages(request)] == ["Second was deleted meanwhile."]


def test_what_is_not_loading_is_not_said_to_be_cancelled(admin_client: Client, model: LanguageModel) -> None:
    assert "Second is not being loaded" in do(admin_client, "cancel-load", model)


# Files


def test_a_model_gets_the_file_of_another_and_its_old_one_back(
    admin_client: Client, model: LanguageModel, stored: LanguageModel
) -> None:
    older = model.current_file
    assert "Second answers with the file of stored" in do(admin_client, "replace", model, other="stored")
    assert LanguageModel.objects.get(name="second").path == stored.path
    assert "Second answers with second.gguf" in do(admin_client, "roll-back", model, version=older.pk)
    assert LanguageModel.objects.get(name="second").path == older.path


def test_a_file_that_does_not_load_is_not_taken_from_its_model(
    admin_client: Client, model: LanguageModel, stored: LanguageModel
) -> None:
    Path(stored.path).write_bytes(b"GGUF, and then nothing of it")
    assert "cannot be used" in do(admin_client, "replace", model, other="stored")
    assert LanguageModel.objects.get(name="stored").files.count() == model.files.count() == 1
    assert LanguageModel.objects.get(name="second").path == model.path


def test_it_does_not_roll_back_to_a_file_that_is_gone(
    admin_client: Client, model: LanguageModel, stored: LanguageModel
) -> None:
    older = model.current_file
    do(admin_client, "replace", model, other="stored")
    Path(older.path).unlink()
    assert "The file of this version is gone" in do(admin_client, "roll-back", model, version=older.pk)
    assert LanguageModel.objects.get(name="second").path == stored.path


def test_a_removed_version_takes_its_downloaded_file_along(
    admin_client: Client, model: LanguageModel, stored: LanguageModel
) -> None:
    older = model.current_file
    do(admin_client, "replace", model, other="stored")
    newer = LanguageModel.objects.get(name="second").current_file
    assert "Roll back to another version first" in do(admin_client, "remove-version", model, version=newer.pk)
    do(admin_client, "roll-back", model, version=older.pk)
    do(admin_client, "remove-version", model, version=newer.pk)
    assert not Path(stored.path).exists() and model.files.get() == older


def test_a_version_of_another_model_is_not_reached(
    admin_client: Client, model: LanguageModel, stored: LanguageModel
) -> None:
    address = reverse("models:roll-back", args=["second"])
    assert admin_client.post(address, {"version": stored.current_file.pk}).status_code == 404


def test_a_deleted_model_leaves_its_chats_to_the_default_and_takes_its_download_along(
    admin_client: Client, admin_user: User, default: LanguageModel, stored: LanguageModel
) -> None:
    chat = Conversation.objects.create(owner=admin_user, model=stored)
    assert "stored was deleted." in do(admin_client, "delete", stored)
    chat.refresh_from_db()
    assert chat.resolved_model() == default and not Path(stored.path).exists()


def test_a_file_that_lies_elsewhere_is_never_touched(admin_client: Client, model: LanguageModel) -> None:
    do(admin_client, "delete", model)
    assert not LanguageModel.objects.filter(name="second").exists() and Path(model.path).exists()


def test_the_default_model_and_the_starter_stay(
    admin_client: Client, default: LanguageModel, model: LanguageModel
) -> None:
    LanguageModel.objects.filter(pk=model.pk).update(is_starter=True)
    assert "Make another one the default first." in do(admin_client, "delete", default)
    assert "Disable it instead." in do(admin_client, "delete", model)
    assert LanguageModel.objects.count() == 2


def test_a_damaged_file_is_found(admin_client: Client, model: LanguageModel) -> None:
    assert "to the last byte" in do(admin_client, "check", model)
    with Path(model.path).open("r+b") as file:
        file.seek(100_000)
        file.write(b"\xff\xff")
    assert "its SHA-256 differs" in do(admin_client, "check", model)


def test_an_embedding_model_cannot_be_the_default(admin_client: Client, model: LanguageModel) -> None:
    LanguageModel.objects.filter(pk=model.pk).update(is_embedding=True)
    assert "it cannot answer chats" in do(admin_client, "make-default", model)
    assert not LanguageModel.objects.get(pk=model.pk).is_default


@pytest.mark.parametrize("name", ["..", "a b", "🙂", "x" * 300, "CON"])
def test_a_strange_name_is_no_model(admin_client: Client, name: str) -> None:
    assert admin_client.get(reverse("models:show", args=[name])).status_code == 404
