"""The tensors of a model by the few numbers that describe it, and the types llama.cpp's recipes give them.

For models whose file nobody has seen yet: the sizes that follow are estimates, true to a few per cent. Knows the
architectures of the catalogue, and the recipes from Q2_K to Q8_0 without an importance matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from localllm.inference.engine.gguf import TENSOR_TYPES, Header, Tensor

Architecture = Literal["llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3n"]
Quantisation = Literal[
    "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0"
]  # fmt: skip

NUM_STREAMS, LAUREL_RANK = 4, 64  # of every Gemma 3n
TOKENIZER_BYTES = 45  # of a file for each token: its text, its merge, its type
BLOCKS = {type_.name: type_.block for type_ in TENSOR_TYPES.values()}
# What llama.cpp takes where a row is no multiple of 256.
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Widths in numbers. `per_layer_width` and `num_cached_layers` are Gemma 3n's."""

    architecture: Architecture
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_length: int
    feed_forward: int
    vocab_size: int
    is_tied: bool  # input and output embeddings are one tensor
    per_layer_width: int = 0
    num_cached_layers: int = 0  # 0: all have a KV cache of their own

    def header(self, name: str, quantisation: Quantisation, context_length: int) -> Header:
        """What the header of such a file would say."""
        tensors = tuple(self._tensors(quantisation))
        num_bytes = sum(tensor.num_bytes for tensor in tensors)
        num_cached = self.num_cached_layers or self.num_layers
        return Header(
            architecture=self.architecture,
            name=name,
            size_bytes=num_bytes + TOKENIZER_BYTES * self.vocab_size,
            tensor_bytes=num_bytes,
            num_parameters=sum(tensor.num_elements for tensor in tensors),
            quantisation=quantisation,
            context_length=context_length,
            num_layers=self.num_layers,
            embedding_length=self.width,
            num_heads=self.num_heads,
            kv_heads=(self.num_kv_heads,) * num_cached + (0,) * (self.num_layers - num_cached),
            key_length=self.head_length,
            value_length=self.head_length,
            state_length=0,
            feed_forward_length=self.feed_forward,
            expert_share=1.0,
            vocab_size=self.vocab_size,
            tokenizer="",
            add_bos=None,
            rope_scaling="",
            pooling="",
            chat_template="",
            tensors=tensors,
        )

    def _tensors(self, quantisation: Quantisation) -> Iterator[Tensor]:
        recipe = _Recipe(quantisation, self)
        yield recipe.tensor("token_embd", self.width, self.vocab_size)
        if not self.is_tied:
            yield recipe.tensor("output", self.width, self.vocab_size)
        if self.per_layer_width:
            per_layer = self.per_layer_width * self.num_layers
            yield recipe.tensor("per_layer_token_embd", per_layer, self.vocab_size)
            yield _half("per_layer_model_proj", self.width, per_layer)
            yield _half("altup_proj", self.width, self.width, NUM_STREAMS - 1)
            yield _half("altup_unembd_proj", self.width, self.width, NUM_STREAMS - 1)
        yield _plain("output_norm", self.width)
        for layer in range(self.num_layers):
            for name, row, num_rows in self._matrices():
                yield recipe.tensor(name, row, num_rows, layer)
            if self.per_layer_width:
                yield _half(f"blk.{layer}.laurel_l", self.width, LAUREL_RANK)
                yield _half(f"blk.{layer}.laurel_r", LAUREL_RANK, self.width)
            yield _plain(f"blk.{layer}.attn_norm", self.width)
            yield _plain(f"blk.{layer}.ffn_norm", self.width)

    def _matrices(self) -> Iterator[tuple[str, int, int]]:
        """Of one layer: the name, the length of a row, the number of rows. Biases and further norms are too small."""
        width, inner = self.width, self.feed_forward
        heads, kv_heads = self.num_heads * self.head_length, self.num_kv_heads * self.head_length
        is_fused = self.architecture == "phi3"
        if is_fused:
            yield "attn_qkv", width, heads + 2 * kv_heads
        else:
            yield "attn_q", width, heads
            yield "attn_k", width, kv_heads
            yield "attn_v", width, kv_heads
            yield "ffn_gate", width, inner
        yield "attn_output", heads, width
        yield "ffn_up", width, 2 * inner if is_fused else inner
        yield "ffn_down", inner, width
        if self.per_layer_width:
            yield "inp_gate", width, self.per_layer_width
            yield "proj", self.per_layer_width, width


class _Recipe:
    """llama_tensor_get_type_impl of llama.cpp's llama-quant.cpp."""

    def __init__(self, quantisation: Quantisation, shape: Shape) -> None:
        self._quantisation = quantisation
        self._type = quantisation.removesuffix("_S").removesuffix("_M").removesuffix("_L")
        self._shape = shape

    def tensor(self, name: str, row: int, num_rows: int, layer: int | None = None) -> Tensor:
        type_ = self._type
        if type_ != "Q8_0":
            if name == "output" or (name == "token_embd" and self._shape.is_tied):
                type_ = "Q6_K"
            elif layer is not None:
                type_ = self._type_in_layer(name, layer)
            if row % BLOCKS[type_]:
                type_ = FALLBACK[type_]
        prefix = "" if layer is None else f"blk.{layer}."
        return Tensor(f"{prefix}{name}.weight", type_, (row, num_rows))

    def _type_in_layer(self, name: str, layer: int) -> str:
        num_layers = self._shape.num_layers
        is_value = name in ("attn_v", "attn_qkv")
        match self._quantisation:
            case "Q2_K" if is_value:
                return "Q4_K" if self._shape.num_heads >= 4 * self._shape.num_kv_heads else "Q3_K"
            case "Q2_K" if name in ("ffn_down", "attn_output"):
                return "Q3_K"
            case "Q3_K_M" if is_value:
                return "Q5_K" if layer < 2 else "Q4_K"
            case "Q3_K_M" if name == "ffn_down":
                return "Q5_K" if layer < num_layers // 16 else "Q4_K"
            case "Q3_K_M" if name == "attn_output":
                return "Q4_K"
            case "Q3_K_L" if is_value or name in ("ffn_down", "attn_output"):
                return "Q5_K"
            case "Q4_K_S" if (is_value and layer < 4) or (name == "ffn_down" and layer < num_layers // 8):
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if (is_value or name == "ffn_down") and _gets_more_bits(layer, num_layers):
                return "Q6_K"
        return self._type


def _gets_more_bits(layer: int, num_layers: int) -> bool:
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def _plain(name: str, length: int) -> Tensor:
    return Tensor(f"{name}.weight", "F32", (length,))


def _half(name: str, *lengths: int) -> Tensor:
    """What no recipe touches."""
    return Tensor(f"{name}.weight", "F16", lengths)
