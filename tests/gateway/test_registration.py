"""How a new file is tried out and loaded, where nobody chose that."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from localllm.gateway.registration import register
from localllm.inference.engine import devices
from tests.gguf_files import STARTER
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
