"""Small GGUF files that tests write themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFWriter, PoolingType, TokenType

STARTER = Path(__file__).parents[1] / "localllm/gateway/data/starter.gguf"
WORDS = ["the", "cat", "dog", "sat", "on", "mat", "ship", "sails", "far", "red", "blue", "hello", "how", "are", "you"]
WIDTH, NUM_LAYERS, NUM_HEADS, WINDOW = 32, 2, 4, 64


def bert(path: Path, pooling: PoolingType = PoolingType.MEAN) -> Path:
    """An embedding model with random weights, as the smallest ones on the hub are built."""
    writer = GGUFWriter(path, "bert")
    writer.add_name("Tiny embeddings")
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(NUM_LAYERS)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(NUM_HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    _add_word_pieces(writer)
    random = np.random.default_rng(0)

    def weights(*size: int) -> npt.NDArray[np.float32]:
        return random.standard_normal(size, dtype=np.float32) * np.float32(0.3)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(WIDTH, np.float32))

    writer.add_tensor("token_embd.weight", weights(len(_word_pieces()), WIDTH))
    writer.add_tensor("token_types.weight", weights(2, WIDTH))
    writer.add_tensor("position_embd.weight", weights(WINDOW, WIDTH))
    norm("token_embd_norm")
    for layer in range(NUM_LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", weights(WIDTH, WIDTH))
            writer.add_tensor(f"blk.{layer}.{name}.bias", weights(WIDTH))
        writer.add_tensor(f"blk.{layer}.ffn_up.weight", weights(2 * WIDTH, WIDTH))
        writer.add_tensor(f"blk.{layer}.ffn_up.bias", weights(2 * WIDTH))
        writer.add_tensor(f"blk.{layer}.ffn_down.weight", weights(WIDTH, 2 * WIDTH))
        writer.add_tensor(f"blk.{layer}.ffn_down.bias", weights(WIDTH))
        norm(f"blk.{layer}.attn_output_norm")
        norm(f"blk.{layer}.layer_output_norm")
    return _write(writer, path)


def starter_with(path: Path, **keys: int | str) -> Path:
    """A copy of the starter; in the names of further keys `__` stands for a dot."""
    whole = GGUFReader(STARTER)
    writer = GGUFWriter(path, whole.fields["general.architecture"].contents())
    for name, field in whole.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture" and name.replace(".", "__") not in keys:
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    for name, value in keys.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(name.replace("__", "."), value)  # type: ignore[arg-type]
    for tensor in whole.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    return _write(writer, path)


def _word_pieces() -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    # As converters write them: a word begins with ▁, its further pieces with nothing.
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁{word}" for word in [*WORDS, *letters]), *letters]


def _add_word_pieces(writer: GGUFWriter) -> None:
    tokens = _word_pieces()
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 5 + [TokenType.NORMAL] * (len(tokens) - 5))
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)


def _write(writer: GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
