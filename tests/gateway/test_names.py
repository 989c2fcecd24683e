"""Whatever a model or its file is called, it gets a plain name of its own, and no path is made of it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from localllm.gateway.models import LanguageModel
from localllm.gateway.registration import register
from localllm.inference.errors import ModelRefused
from tests.gguf_files import STARTER

pytestmark = pytest.mark.django_db(transaction=True)

NAMES = {
    "../../x": "x",
    "CON": "con",
    "a" * 300: "a" * 90,
    "💥": "model",
    "💥💥": "model-2",
    "Qwen2.5 0.5B (Q4_K_M)": "qwen2.5-0.5b-q4_k_m",
    "default": "model-3",
    "<script>": "script",
    "\x00\n": "model-4",
    "..": "model-5",
}


def test_any_name_becomes_a_plain_one(tmp_path: Path) -> None:
    for number, (name, expected) in enumerate(NAMES.items()):
        path = Path(shutil.copy(STARTER, tmp_path / f"{number}.gguf"))
        model = LanguageModel.objects.register(path, name=name)
        assert model.name == expected and re.fullmatch(r"[a-z0-9._-]+", model.name)
        assert model.path == str(path)


async def test_a_file_of_any_name_is_tried_and_registered(tmp_path: Path) -> None:
    for name in ("💥 & friends.gguf", f"{'é' * 120}.gguf", "-n_ctx=9.gguf", "CON"):
        model = await register(Path(shutil.copy(STARTER, tmp_path / name)))
        assert model.path == str(tmp_path / name)


async def test_a_file_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.gguf")
    shutil.copy(STARTER, path)
    with pytest.raises(ModelRefused, match="no path in UTF-8"):
        await register(path)
