"""How a new file is tried out and loaded, where nobody chose that."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from localllm.gateway.providers import local
from localllm.gateway.registration import register
from localllm.inference.engine import devices
from localllm.inference.engine.gguf import read_header
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.memory import account, this_machine
from tests.gguf_files import STARTER, starter_with
from tests.inference.test_probe import children

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio]


async def test_a_file_is_tried_out_without_the_gpu_when_nothing_fits_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "DEVICE_FILES", ("/dev/null",))  # no memory of it can be had
    before, commands = children(), b""
    trial = asyncio.create_task(register(STARTER))
    while not trial.done():
        for pid in children() - before:
            with contextlib.suppress(OSError):
                commands += Path(f"/proc/{pid}/cmdline").read_bytes()
        await asyncio.sleep(0.01)
    assert b"engine.probe" in commands and b'"n_gpu_layers":0' in commands
    assert (await trial).n_gpu_layers == -1  # of the row: the next load may have room


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that this machine has room for with 2,048 tokens for each conversation, and not with 4,096."""
    path = starter_with(tmp_path / "large.gguf", llama__context_length=8192)
    here = this_machine()
    need = account(read_header(path), EngineSettings(n_ctx=2048), here).used_bytes
    monkeypatch.setattr(local, "_share", need / here.total_bytes)
    return path


async def test_a_new_model_gets_the_largest_window_that_fits(large: Path) -> None:
    assert 1024 < (await register(large)).n_ctx <= 2048


async def test_a_window_that_somebody_chose_stays(large: Path) -> None:
    assert (await register(large, n_ctx=4096)).n_ctx == 4096


async def test_a_model_that_is_registered_again_keeps_its_window(large: Path) -> None:
    await register(large, n_ctx=512)
    assert (await register(large)).n_ctx == 512
