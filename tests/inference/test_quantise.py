"""A smaller file of a model, made where it can be, and nothing left where it cannot."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from localllm.inference.engine import quantise as quantise_module
from localllm.inference.engine.gguf import read_header
from localllm.inference.engine.quantise import RECIPES, Progress, check, quantise, recipes_for
from localllm.inference.errors import ModelRefused
from localllm.inference.shapes import Quantisation
from tests.gguf_files import STARTER
from tests.inference.test_probe import children


async def made(target: Path, recipe: Quantisation, source: Path = STARTER) -> list[Progress]:
    async with aclosing(quantise(source, target, recipe)) as steps:
        return [step async for step in steps]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "smaller.gguf"


@pytest.mark.parametrize("recipe", ["Q2_K", "Q4_K_M", "Q6_K"])
async def test_it_makes_a_smaller_file_and_tells_how_far_it_is(target: Path, recipe: Quantisation) -> None:
    steps = await made(target, recipe)
    header = read_header(target)
    assert (header.quantisation, header.num_parameters) == (recipe, read_header(STARTER).num_parameters)
    assert [step.num_done for step in steps] == [0, *range(len(header.tensors))]
    assert target.stat().st_size < STARTER.stat().st_size


async def test_it_knows_the_size_before_it_begins(target: Path) -> None:
    first = (await made(target, "Q4_K_M"))[0]
    assert first.size_bytes == pytest.approx(read_header(target).tensor_bytes, rel=0.01)


async def test_a_file_that_has_lost_too_much_already_is_refused(target: Path, tmp_path: Path) -> None:
    await made(target, "Q4_K_M")
    assert recipes_for(read_header(target)) == ()
    with pytest.raises(ModelRefused, match="is Q4_K_M already: to quantise it once more would lose too much"):
        await made(tmp_path / "smallest.gguf", "Q2_K", source=target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smaller.gguf"]


def test_only_smaller_types_are_offered() -> None:
    assert recipes_for(read_header(STARTER)) == RECIPES[:-1]
    for recipe in ("Q8_0", "Q4_K", "../x", ""):
        with pytest.raises(ModelRefused, match="Choose one of Q2_K"):
            check(read_header(STARTER), recipe)


async def test_closing_the_iterator_ends_it_and_leaves_nothing(target: Path) -> None:
    before = children()
    async with aclosing(quantise(STARTER, target, "Q4_K_M")) as steps:
        assert (await anext(steps)).num_done == 0
    assert not target.exists() and children() <= before


async def test_a_killed_quantiser_is_an_error_and_leaves_nothing(target: Path) -> None:
    before = children()
    with pytest.raises(ModelRefused, match="the engine was killed"):
        async with aclosing(quantise(STARTER, target, "Q4_K_M")) as steps:
            await anext(steps)
            (pid,) = children() - before
            os.kill(int(pid), signal.SIGKILL)
            async for _ in steps:
                await asyncio.sleep(0)
    assert not target.exists()


async def test_a_disk_without_room_is_said_before_the_first_byte(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise_module, "SPARE_BYTES", shutil.disk_usage(target.parent).free)
    with pytest.raises(ModelRefused, match="must stay free"):
        await made(target, "Q4_K_M")
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"GGUF", STARTER.read_bytes()[:2_000_000]])
async def test_a_broken_source_is_refused_with_the_reason(content: bytes, target: Path, tmp_path: Path) -> None:
    source: Any = tmp_path / "broken.gguf"
    source.write_bytes(content)
    with pytest.raises(ModelRefused, match=r"broken\.gguf cannot be used: it"):
        await made(target, "Q4_K_M", source)
