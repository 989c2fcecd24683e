"""The sizes of files nobody has seen: the very types that llama.cpp's own quantiser chooses."""

from pathlib import Path
from typing import get_args

import llama_cpp
import pytest

from localllm.inference.engine.gguf import Header, read_header
from localllm.inference.shapes import Quantisation, Shape
from tests.bench import make_model

STARTER = Path(__file__).parents[2] / "localllm/gateway/data/starter.gguf"


def shape(width: int, num_kv_heads: int) -> Shape:
    return Shape(
        architecture="qwen2",
        num_layers=20,
        width=width,
        num_heads=8,
        num_kv_heads=num_kv_heads,
        head_length=width // 8,
        feed_forward=512,
        vocab_size=4096,
        is_tied=True,
    )


def types(header: Header) -> dict[str, str]:
    return {tensor.name: tensor.type for tensor in header.tensors if len(tensor.shape) > 1}


# Rows that K-quants can divide and rows they cannot; heads that share their values four to one, or fewer.
@pytest.fixture(scope="module", params=[(256, 2), (256, 4), (64, 2)], ids=str)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Shape]:
    width, num_kv_heads = request.param
    path = tmp_path_factory.mktemp("shapes") / "full.gguf"
    make_model.write(path, make_model.Shape(width, 20, 8, num_kv_heads, 512), STARTER)
    return path, shape(width, num_kv_heads)


@pytest.mark.parametrize("quantisation", get_args(Quantisation))
def test_it_gives_each_tensor_the_type_that_llama_cpp_gives_it(
    quantisation: Quantisation, made: tuple[Path, Shape], tmp_path: Path
) -> None:
    full, shape = made
    recipe = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quantisation}")
    make_model.quantise(full, tmp_path / "small.gguf", recipe)
    real, told = read_header(tmp_path / "small.gguf"), shape.header("", quantisation, 1024)
    assert types(told) == types(real)
    assert told.tensor_bytes == pytest.approx(real.tensor_bytes, rel=0.02)
    assert (told.kv_heads, told.key_length, told.quantisation) == (real.kv_heads, real.key_length, real.quantisation)
