"""Models of true size and shape with random weights: as fast as the trained ones, and nothing to download.

The tokenizer is a real one, taken from another GGUF. Only whole lower-case words can be sampled: answers
then never end by themselves, and read back they are the same tokens, so a follow-up turn finds its cache.
"""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import llama_cpp as llama
import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFWriter, LlamaFileType

from deploy.build_llama import ROOT
from tests.bench import peers

BUILD = ROOT / "var/build/bench"
TRAINED_WINDOW = 32768
SCALE = 0.02  # standard deviation of the weights, as models are initialised
WORD = re.compile(r"Ġ[a-z]+")
SILENT = llama.llama_log_callback(lambda level, text, data: None)  # llama.cpp keeps the pointer
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Qwen2 model whose input and output embeddings are one tensor."""

    embedding: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    feed_forward: int

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.embedding // self.num_heads

    def kv_bytes(self, num_tokens: int) -> int:
        """Size of an f16 KV cache."""
        return 2 * 2 * self.num_layers * self.kv_width * num_tokens


SHAPES = {
    "tiny": Shape(64, 2, 2, 1, 128),
    "0.5b": Shape(896, 24, 14, 2, 4864),
    "1.5b": Shape(1536, 28, 12, 2, 8960),
    "3b": Shape(2048, 36, 16, 2, 11008),
}


def model(name: str, weights: Literal["q4_k_m", "f16"] = "q4_k_m") -> Path:
    """The model of that shape with Qwen2's vocabulary, made if need be."""
    path = BUILD / f"qwen2-{name}-random-{weights}.gguf"
    if not path.exists():
        print(f"Making {path.name}: a minute or two, once.", flush=True)
        BUILD.mkdir(parents=True, exist_ok=True)
        vocabulary = peers.source() / "vendor/llama.cpp/models/ggml-vocab-qwen2.gguf"
        if weights == "q4_k_m":
            make(path, SHAPES[name], vocabulary)
        else:
            write(path.with_suffix(".partial"), SHAPES[name], vocabulary)
            path.with_suffix(".partial").rename(path)
    return path


def make(path: Path, shape: Shape, vocabulary: Path) -> None:
    """Write a Q4_K_M model of that shape to `path`, with the tokenizer of the GGUF file `vocabulary`."""
    full, partial = path.with_suffix(".f16"), path.with_suffix(".partial")
    write(full, shape, vocabulary)
    quantise(full, partial)
    full.unlink()
    partial.rename(path)


def write(path: Path, shape: Shape, vocabulary: Path) -> None:
    """The same in half precision."""
    writer = GGUFWriter(path, "qwen2")
    tokens = copy_tokenizer(GGUFReader(vocabulary), writer)
    writer.add_chat_template(CHATML)
    writer.add_context_length(TRAINED_WINDOW)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    add_tensors(writer, shape, tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def copy_tokenizer(reader: GGUFReader, writer: GGUFWriter) -> list[str]:
    """Copy everything about the tokenizer; return its tokens."""
    for name, field in reader.fields.items():
        if name.startswith("tokenizer.ggml."):
            value, kind = field.contents(), field.types[0]
            sub_type = field.types[-1] if isinstance(value, list) else None
            writer.add_key_value(name, value, kind, sub_type)
    tokens: list[str] = reader.fields["tokenizer.ggml.tokens"].contents()
    return tokens


def add_tensors(writer: GGUFWriter, shape: Shape, tokens: list[str]) -> None:
    random = np.random.default_rng(0)

    def weights(*size: int) -> npt.NDArray[np.float16]:
        return (random.standard_normal(size, dtype=np.float32) * SCALE).astype(np.float16)

    def constant(size: int, value: float) -> npt.NDArray[np.float32]:
        return np.full(size, value, np.float32)

    width, kv_width, inner = shape.embedding, shape.kv_width, shape.feed_forward
    embeddings = weights(len(tokens), width)
    # A logit of exactly 0 never gets among the likeliest of thousands.
    embeddings[[WORD.fullmatch(token) is None for token in tokens]] = 0
    writer.add_tensor("token_embd.weight", embeddings)
    writer.add_tensor("output_norm.weight", constant(width, 1))
    for layer in range(shape.num_layers):
        for name, tensor in (
            ("attn_norm.weight", constant(width, 1)),
            ("attn_q.weight", weights(width, width)),
            ("attn_q.bias", constant(width, 0)),
            ("attn_k.weight", weights(kv_width, width)),
            ("attn_k.bias", constant(kv_width, 0)),
            ("attn_v.weight", weights(kv_width, width)),
            ("attn_v.bias", constant(kv_width, 0)),
            ("attn_output.weight", weights(width, width)),
            ("ffn_norm.weight", constant(width, 1)),
            ("ffn_gate.weight", weights(inner, width)),
            ("ffn_up.weight", weights(inner, width)),
            ("ffn_down.weight", weights(width, inner)),
        ):
            writer.add_tensor(f"blk.{layer}.{name}", tensor)


def quantise(source: Path, path: Path, recipe: int = llama.LLAMA_FTYPE_MOSTLY_Q4_K_M) -> None:
    llama.llama_log_set(SILENT, ctypes.c_void_p(0))
    params = llama.llama_model_quantize_default_params()
    params.ftype = recipe
    code = llama.llama_model_quantize(str(source).encode(), str(path).encode(), params)
    if code:
        raise SystemExit(f"llama.cpp could not quantise {source}: it returned {code}, expected 0.")


if __name__ == "__main__":
    print(model(sys.argv[1] if len(sys.argv) > 1 else "0.5b"))
