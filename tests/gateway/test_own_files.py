"""The pages register files under the configured folders only, whatever path they are given."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django.fixtures import Settings

from localllm.gateway import own_files
from localllm.gateway.models import LanguageModel
from localllm.inference.errors import ModelRefused
from tests.gguf_files import STARTER

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def root(settings: Settings, tmp_path: Path) -> Path:
    (tmp_path / "root/deep").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    shutil.copy(STARTER, tmp_path / "outside/secret.gguf")
    shutil.copy(STARTER, tmp_path / "root/deep/mine.gguf")
    settings.MODEL_ROOTS = [tmp_path / "root", tmp_path / "nowhere"]
    return tmp_path / "root"


def test_a_file_below_a_root_is_allowed(root: Path) -> None:
    assert own_files.allowed(f" {root}/deep/mine.gguf ") == root / "deep/mine.gguf"
    (root / "link.gguf").symlink_to(root / "deep/mine.gguf")
    assert own_files.allowed(f"{root}/link.gguf") == root / "deep/mine.gguf"


def test_nothing_else_is(root: Path) -> None:
    outside = root.parent / "outside"
    (root / "link.gguf").symlink_to(outside / "secret.gguf")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to("loop")
    shutil.copy(STARTER, root / "m-00001-of-00002.gguf")
    (root / "m-00002-of-00002.gguf").symlink_to(outside / "secret.gguf")
    names = ("../outside/secret.gguf", "link.gguf", "folder/secret.gguf", "loop", "nothing", "m-00001-of-00002.gguf")
    for path in (*(f"{root}/{name}" for name in names), f"{outside}/secret.gguf", "/etc/passwd", f"{root}x", "/\0"):
        with pytest.raises(ModelRefused, match="There is no such file under"):
            own_files.allowed(path)
    with pytest.raises(ModelRefused, match="not a full path"):
        own_files.allowed("deep/mine.gguf")


def test_without_roots_the_page_says_how_to_name_some(admin_client: Client, settings: Settings) -> None:
    settings.MODEL_ROOTS = []
    assert "LOCALLLM_MODEL_ROOTS" in admin_client.get(reverse("models:uploads")).content.decode()
    with pytest.raises(ModelRefused, match="LOCALLLM_MODEL_ROOTS"):
        own_files.allowed(str(STARTER))


def test_it_lists_what_lies_there(root: Path) -> None:
    outside = root.parent / "outside"
    (root / "link.gguf").symlink_to(outside / "secret.gguf")
    (root / "folder").symlink_to(outside)
    (root / ".hidden").mkdir()
    for name in ("notes.txt", ".hidden/m.gguf", "m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "pipe.gguf"):
        os.mkfifo(root / name) if "pipe" in name else shutil.copy(STARTER, root / name)
    assert [file.label for file in own_files.candidates()] == ["deep/mine.gguf", "m-00001-of-00002.gguf"]


def test_the_list_is_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_files, "MAX_CANDIDATES", 3)
    for number in range(9):
        (root / f"{number}.gguf").touch()
    assert len(own_files.candidates()) == 3


def test_a_file_is_registered_where_it_lies(admin_client: Client, root: Path) -> None:
    path = root / "deep/mine.gguf"
    assert admin_client.post(reverse("models:register"), {"path": str(path)}).status_code == 302
    assert LanguageModel.objects.get().path == str(path)
    assert [file.model for file in own_files.candidates()] == [LanguageModel.objects.get()]
    assert "registered as mine" in admin_client.get(reverse("models:uploads")).content.decode()


def test_a_refusal_is_said_on_the_page(admin_client: Client, root: Path) -> None:
    (root / "broken.gguf").write_bytes(b"GGUF")
    page = admin_client.post(reverse("models:register"), {"path": str(root / "broken.gguf")}, follow=True)
    assert "broken.gguf cannot be used: it ends in the middle" in page.content.decode()


def test_the_admin_obeys_the_same(admin_client: Client, root: Path) -> None:
    path = root.parent / "outside/secret.gguf"
    page = admin_client.post(reverse("admin:gateway_languagemodel_add"), {"path": str(path)})
    assert "There is no such file under" in page.content.decode() and not LanguageModel.objects.exists()
