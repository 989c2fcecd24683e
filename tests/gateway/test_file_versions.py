"""A model and its files: which one serves, which ones it was, and what becomes of them."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path

import pytest
from django.apps import apps
from django.conf import settings
from django.contrib.auth.models import User

from chat.models import Conversation
from localllm.gateway.models import FileVersion, LanguageModel
from localllm.gateway.models.language_model import ModelError

pytestmark = pytest.mark.django_db


@pytest.fixture
def default(tmp_path: Path) -> LanguageModel:
    return LanguageModel.objects.register(a_file(tmp_path / "default.gguf", b"0"))


@pytest.fixture
def model(default: LanguageModel, tmp_path: Path) -> LanguageModel:
    return LanguageModel.objects.register(a_file(tmp_path / "first.gguf", b"1"))


@pytest.fixture
def newer(default: LanguageModel, tmp_path: Path) -> LanguageModel:
    return LanguageModel.objects.register(a_file(tmp_path / "newer.gguf", b"22"), description="newer")


def a_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def serve(model: LanguageModel, file: FileVersion) -> None:
    model.become(file).save()


def test_a_model_begins_with_one_version(model: LanguageModel) -> None:
    version = model.current_file
    assert (version.path, version.sha256, version.name) == (model.path, model.sha256, "first.gguf")


def test_registering_a_changed_file_updates_its_version(model: LanguageModel) -> None:
    Path(model.path).write_bytes(b"changed")
    again = LanguageModel.objects.register(Path(model.path))
    assert again == model and again.files.count() == 1
    assert again.sha256 == again.current_file.sha256 != model.sha256


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_noticed(model: LanguageModel, tmp_path: Path) -> None:
    before, other = model.sha256, a_file(tmp_path / "other", b"2")
    shutil.copystat(model.path, other)
    other.replace(model.path)
    assert LanguageModel.objects.register(Path(model.path)).sha256 != before


def test_the_parts_of_a_split_file_are_hashed_together(default: LanguageModel, tmp_path: Path) -> None:
    second = a_file(tmp_path / "a-00002-of-00002.gguf", b"2")
    first = LanguageModel.objects.register(a_file(tmp_path / "a-00001-of-00002.gguf", b"1"))
    before = first.sha256
    second.write_bytes(b"3")
    first.sha256 = ""
    first.remember_file()
    assert first.sha256 != before


def test_a_replaced_model_keeps_its_name_and_serves_the_other_file(model: LanguageModel, newer: LanguageModel) -> None:
    serve(model, model.take_over(newer))
    assert (model.name, model.path, model.sha256, model.description) == ("first", newer.path, newer.sha256, "newer")
    assert model.files.count() == 2 and not LanguageModel.objects.filter(name="newer").exists()


def test_what_was_the_others_comes_along(model: LanguageModel, newer: LanguageModel) -> None:
    chat = Conversation.objects.create(owner=User.objects.create_user("ada"), model=newer)
    newer.make_default()
    model.take_over(newer)
    chat.refresh_from_db()
    assert chat.model == model == LanguageModel.objects.default()


def test_it_rolls_back_to_an_older_version(model: LanguageModel, newer: LanguageModel) -> None:
    older, path = model.current_file, model.path
    serve(model, model.take_over(newer))
    serve(model, older)
    assert (model.path, model.sha256) == (path, older.sha256)


def test_an_older_version_that_is_registered_again_does_not_serve(model: LanguageModel, newer: LanguageModel) -> None:
    path = Path(model.path)
    serve(model, model.take_over(newer))
    assert LanguageModel.objects.register(path) == model
    assert LanguageModel.objects.get(pk=model.pk).path == newer.path


def test_a_model_is_not_replaced_by_another_kind(model: LanguageModel, newer: LanguageModel) -> None:
    newer.is_embedding = True
    with pytest.raises(ModelError, match="makes embeddings"):
        model.take_over(newer)


def test_the_starter_keeps_its_file(model: LanguageModel) -> None:
    starter = LanguageModel.objects.register(settings.STARTER_MODEL, is_starter=True)
    with pytest.raises(ModelError, match="comes with LocalLLM"):
        model.take_over(starter)


def test_models_of_an_older_database_get_their_first_version() -> None:
    old = LanguageModel.objects.create(name="old", path="/models/old.gguf", sha256="ab", size_bytes=1, file_mtime_ns=1)
    import_module("localllm.gateway.migrations.0010_file_versions").give_each_model_its_first_version(apps, None)
    assert FileVersion.objects.get().name == "old.gguf" and old.current_file.sha256 == "ab"
