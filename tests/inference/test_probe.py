"""A model serves only after it has loaded, decoded and rendered in a process that may die of it."""

import asyncio
import contextlib
import struct
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from localllm.inference import model_file
from localllm.inference.engine import probe as probe_module
from localllm.inference.engine.gguf import read_header
from localllm.inference.engine.probe import ProbeReport, probe
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import ModelRefused
from tests.gguf_files import starter_with

STARTER = Path(__file__).parents[2] / "localllm/gateway/data/starter.gguf"
SETTINGS = EngineSettings(n_threads=1, num_slots=1)
SHAPE_OF_NOSUCH = {
    "nosuch__context_length": 1024,
    "nosuch__block_count": 6,
    "nosuch__embedding_length": 192,
    "nosuch__attention__head_count": 6,
}


def changed(path: Path, old: bytes, new: bytes) -> Path:
    """A copy of the starter with other bytes of the same length in one place."""
    whole = STARTER.read_bytes()
    assert whole.count(old) == 1 and len(old) == len(new)
    path.write_bytes(whole.replace(old, new))
    return path


def with_template(path: Path, source: str) -> Path:
    """A copy of the starter with another chat template, filled up so that the tensors stay aligned."""
    whole, old = STARTER.read_bytes(), read_header(STARTER).chat_template.encode()
    new = source.encode() + b"{##}"
    new = new[:-2] + b" " * ((len(old) - len(new)) % 32) + b"#}"
    before, after = whole.split(struct.pack("<Q", len(old)) + old)
    path.write_bytes(before + struct.pack("<Q", len(new)) + new + after)
    return path


async def refusal(path: Path) -> str:
    with pytest.raises(ModelRefused) as refused:
        await probe(path, settings=SETTINGS)
    return str(refused.value)


def children() -> set[str]:
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found.update((task / "children").read_text().split())
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


async def test_it_measures_a_model_that_works() -> None:
    report = await probe(STARTER, settings=SETTINGS)
    assert isinstance(report, ProbeReport)
    assert report.header == read_header(STARTER)
    assert report.window == 1024
    assert min(report.load_s, report.tokens_per_s) > 0
    assert report.peak_memory_bytes > report.header.tensor_bytes


async def test_it_keeps_llama_cpp_out_of_the_asking_process() -> None:
    code = "import sys, localllm.inference.engine.probe; sys.exit('llama_cpp' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=Path(__file__).parents[2])
    assert await process.wait() == 0


@pytest.mark.parametrize("content", [b"", b"GGUF" + bytes(99), STARTER.read_bytes()[:2_000_000]])
async def test_it_refuses_a_broken_file_by_its_header(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    assert (await refusal(path)).startswith("model.gguf cannot be used: it")


async def test_it_refuses_a_file_whose_shapes_do_not_fit_its_architecture(path: Path) -> None:
    key = b"llama.embedding_length" + struct.pack("<I", 4)
    changed(path, key + struct.pack("<I", 192), key + struct.pack("<I", 160))
    assert "llama.cpp cannot load model.gguf" in await refusal(path)


async def test_it_survives_a_file_that_aborts_llama_cpp(path: Path) -> None:
    key = b"llama.attention.layer_norm_rms_epsilon" + struct.pack("<I", 6)
    changed(path, key + struct.pack("<f", 1e-5), key + struct.pack("<f", -1))
    reason = await refusal(path)
    assert "crashed with SIGABRT while computing its first tokens" in reason
    assert "GGML_ASSERT(eps >= 0.0f)" in reason


async def test_it_refuses_weights_that_are_no_numbers(path: Path) -> None:
    whole = STARTER.read_bytes()
    path.write_bytes(whole[:-300_000] + b"\xff" * 300_000)
    assert "compute to no number" in await refusal(path)


async def test_it_refuses_an_architecture_that_llama_cpp_does_not_know(path: Path) -> None:
    starter_with(path, general__architecture="nosuch", **SHAPE_OF_NOSUCH)
    assert "unknown model architecture: 'nosuch'" in await refusal(path)


async def test_it_loads_through_a_link(tmp_path: Path) -> None:
    link = tmp_path / "link 💥.gguf"
    link.symlink_to(STARTER)
    assert (await probe(link, settings=SETTINGS)).window == 1024


BOMBS = {
    "triple loop": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
        "x{% endfor %}{% endfor %}{% endfor %}",
        "s of computing and was stopped",
    ),
    "power": ("{{ 9 ** 999999999 }}", "s of computing and was stopped"),
    "multiplication": ("{{ 'a' * 2000000000 }}", "MemoryError"),
    "doubling": (
        "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "MemoryError",
    ),
    "escape": ("{{ ''.__class__.__mro__ }}{{ messages[-1].content }}", "unsafe"),
    "refusal": ("{{ raise_exception('I like nobody') }}", "I like nobody"),
    "loss": ("Hello.", "loses what the user wrote"),
}


@pytest.mark.parametrize("bomb", BOMBS)
async def test_it_refuses_a_bad_chat_template_and_names_it(bomb: str, path: Path) -> None:
    source, reason = BOMBS[bomb]
    text = await refusal(with_template(path, source))
    assert text.startswith("The chat template of ")
    assert reason in text


async def test_it_accepts_another_template(path: Path) -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    report = await probe(with_template(path, source), settings=SETTINGS)
    assert report.header.chat_template.startswith(source)


async def test_it_gives_up_on_a_file_that_does_not_load_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "FIRST_LIMIT_S", 0.0)
    monkeypatch.setattr(model_file, "SLOWEST_DISK", 1e12)
    before = children()
    assert "did not end in time" in await refusal(STARTER)
    assert children() <= before


async def test_it_leaves_no_process_when_it_is_cancelled(path: Path) -> None:
    before = children()
    task = asyncio.create_task(probe(with_template(path, BOMBS["power"][0]), settings=SETTINGS))
    while not children() - before:
        await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert children() <= before


async def test_it_shows_the_child_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "canary")
    before = children()
    task = asyncio.create_task(probe(STARTER, settings=SETTINGS))
    seen: set[bytes] = set()
    while not task.done():
        for pid in children() - before:
            with contextlib.suppress(OSError):
                seen |= set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
        await asyncio.sleep(0.01)
    assert b"GGML_NO_BACKTRACE=1" in seen
    assert b"SECRET_KEY=canary" not in seen
