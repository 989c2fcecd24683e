"""The maker of benchmark models, with the starter model's vocabulary."""

from pathlib import Path

from deploy.build_llama import ROOT
from localllm.inference.engine.runner import Runner
from localllm.inference.engine.settings import EngineSettings
from tests.bench.make_model import SHAPES, make

STARTER = ROOT / "localllm/gateway/data/starter.gguf"


def test_it_makes_a_model_that_loads(tmp_path: Path) -> None:
    make(tmp_path / "tiny.gguf", SHAPES["tiny"], vocabulary=STARTER)
    runner = Runner(tmp_path / "tiny.gguf", EngineSettings(n_ctx=64, num_slots=1))
    try:
        text = b"".join(map(runner.piece, runner.tokenize("Hello, world", special=False)))
        assert (text, runner.info.vocab_size) == (b"Hello, world", 4096)
    finally:
        runner.close()


def test_it_leaves_nothing_else_behind(tmp_path: Path) -> None:
    make(tmp_path / "tiny.gguf", SHAPES["tiny"], vocabulary=STARTER)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]
