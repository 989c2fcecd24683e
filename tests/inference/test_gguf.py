"""A model file is refused with a sentence, or its header can be trusted. Never anything else."""

import os
import struct
from pathlib import Path

import gguf
import pytest

from localllm.inference.engine.gguf import FILE_TYPES, TENSOR_TYPES, Header, read_header
from localllm.inference.errors import ModelRefused
from tests.mutants import HEAD_OF_STARTER, judge, mutants

STARTER = Path(__file__).parents[2] / "localllm/gateway/data/starter.gguf"
U8, U32, F32, STRING, ARRAY = 0, 4, 6, 8, 9
Q4_K = 12


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def key(name: str, kind: int, value: bytes) -> bytes:
    return string(name.encode()) + struct.pack("<I", kind) + value


def text(name: str, value: str) -> bytes:
    return key(name, STRING, string(value.encode()))


def number(name: str, value: int) -> bytes:
    return key(name, U32, struct.pack("<I", value))


def array(name: str, kind: int, count: int, data: bytes) -> bytes:
    return key(name, ARRAY, struct.pack("<IQ", kind, count) + data)


def tensor(name: str, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name.encode()) + dimensions + struct.pack("<IQ", kind, offset)


ARCHITECTURE = text("general.architecture", "llama")
CONTEXT = number("llama.context_length", 2048)
SHAPE = [
    number("llama.block_count", 2),
    number("llama.embedding_length", 256),
    number("llama.attention.head_count", 4),
]
TOKENS = array("tokenizer.ggml.tokens", STRING, 2, string(b"a") + string(b"b"))
KEYS = [ARCHITECTURE, CONTEXT, *SHAPE, TOKENS]
TENSORS = [tensor("a", [256, 4], Q4_K, 0), tensor("b", [32], 0, 576)]
DATA = bytes(576 + 128)


def build(
    keys: list[bytes] = KEYS,
    tensors: list[bytes] = TENSORS,
    data: bytes = DATA,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_keys: int | None = None,
    num_tensors: int | None = None,
) -> bytes:
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def read(path: Path, content: bytes) -> Header:
    path.write_bytes(content)
    return read_header(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def test_it_reads_what_the_starter_says_of_itself() -> None:
    header = read_header(STARTER)
    assert (header.architecture, header.name) == ("llama", "LocalLLM Starter 3M")
    assert (header.context_length, header.num_layers, header.vocab_size) == (1024, 6, 4096)
    assert (header.num_heads, header.num_kv_heads, header.key_length) == (6, 3, 32)
    assert (header.quantisation, header.tokenizer, header.add_bos) == ("Q8_0", "gpt2", True)
    assert header.num_parameters == 3_221_952
    assert header.tensor_bytes < header.size_bytes == STARTER.stat().st_size
    assert header.chat_template.startswith("{{ bos_token }}")


def test_it_fills_in_what_a_file_leaves_out(path: Path) -> None:
    header = read(path, build())
    assert header.name == "model"
    assert header.quantisation == "Q4_K"
    assert header.num_kv_heads == 4
    assert header.key_length == 64
    assert (header.chat_template, header.rope_scaling, header.add_bos) == ("", "", None)


def test_it_takes_the_largest_of_numbers_given_per_layer(path: Path) -> None:
    per_layer = array("llama.attention.head_count_kv", U32, 2, struct.pack("<2I", 1, 2))
    assert read(path, build([*KEYS, per_layer])).num_kv_heads == 2


def test_it_shows_no_control_characters_of_a_name(path: Path) -> None:
    assert read(path, build([*KEYS, text("general.name", "\x1b[31mred\n" + "x" * 999)])).name.startswith("[31mred")


def test_it_knows_the_sizes_of_all_tensor_types_that_ggml_has() -> None:
    known = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    known[9] = (32, 36)  # the package counts Q8_1's two half floats as whole ones
    assert known.items() <= {kind: (form.block, form.size) for kind, form in TENSOR_TYPES.items()}.items()
    assert {int(kind) for kind in gguf.LlamaFileType} - {1024} <= FILE_TYPES.keys()


CRAFTED = {
    "empty": (b"", "is empty"),
    "web page": (b"<!DOCTYPE html>" * 100, "begins with “<!DO” instead of “GGUF”"),
    "bad magic": (build(magic=b"GGML"), "begins with “GGML” instead of “GGUF”"),
    "no text": (b"\x80\x02}q" * 100, "begins with the bytes 80 02 7d 71 instead of “GGUF”"),
    "only the magic": (b"GGUF", "ends in the middle of its header"),
    "big-endian": (build(version=0x03000000), "big-endian"),
    "version 1": (build(version=1), "version is 1"),
    "2^63 keys": (build(num_keys=1 << 63), "keys"),
    "2^62 tensors": (build(num_tensors=1 << 62), "tensors"),
    "more keys than there are": (build(num_keys=4000), "cannot be used"),
    "duplicate key": (build([*KEYS, CONTEXT]), "'llama.context_length' occurs twice"),
    "string of 2^60 bytes": (
        build([*KEYS, key("k", STRING, struct.pack("<Q", 1 << 60))]),
        "claims 1,152,921,504,606,846,976 bytes",
    ),
    "template of 1.2 MB": (
        build([*KEYS, text("tokenizer.chat_template", "{% if 1 %}" * 120_000)]),
        "'tokenizer.chat_template' claims 1,200,000 bytes",
    ),
    "unknown value type": (build([*KEYS, key("k", 77, bytes(8))]), "unknown type 77"),
    "array of arrays": (build([*KEYS, array("k", ARRAY, 1, bytes(99))]), "unknown type 9"),
    "array of 2^60 elements": (build([*KEYS, array("k", U32, 1 << 60, b"")]), "elements"),
    "array beyond the end": (build([*KEYS, array("k", U32, 1_000_000, b"")]), "ends in the middle"),
    "token of 2^60 bytes": (
        build([*KEYS, array("tokenizer.ggml.merges", STRING, 1, struct.pack("<Q", 1 << 60))]),
        "an element of 'tokenizer.ggml.merges' claims",
    ),
    "scores of bytes": (
        build([*KEYS, array("tokenizer.ggml.scores", U8, 2, bytes(2))]),
        "elements of 'tokenizer.ggml.scores' have the wrong type",
    ),
    "fewer scores than tokens": (
        build([*KEYS, array("tokenizer.ggml.scores", F32, 1, bytes(4))]),
        "one entry for each of its 2 tokens",
    ),
    "tokens of numbers": (
        build([*KEYS[:-1], array("tokenizer.ggml.tokens", U32, 2, bytes(8))]),
        "wrong type",
    ),
    "no vocabulary": (build(KEYS[:-1]), "holds no vocabulary"),
    "no architecture": (build(KEYS[1:]), "which architecture"),
    "no context length": (build([ARCHITECTURE, *SHAPE, TOKENS]), "does not say its 'llama.context_length'"),
    "context length 0": (
        build([ARCHITECTURE, number("llama.context_length", 0), *SHAPE, TOKENS]),
        "'llama.context_length' is 0, not a number from 1",
    ),
    "context length in words": (
        build([ARCHITECTURE, text("llama.context_length", "long"), *SHAPE, TOKENS]),
        "'llama.context_length' is 'long'",
    ),
    "architecture is a number": (build([number("general.architecture", 1), *KEYS[1:]]), "not a text"),
    "a part of a model": (build([*KEYS, number("split.count", 3)]), "one of 3 parts"),
    "an adapter": (build([*KEYS, text("general.type", "adapter")]), "'adapter'"),
    "alignment 2^31": (build([*KEYS, number("general.alignment", 1 << 31)]), "general.alignment"),
    "alignment 48": (build([*KEYS, number("general.alignment", 48)]), "alignment is 48"),
    "no tensors": (build(tensors=[]), "no weights"),
    "no dimensions": (build(tensors=[tensor("a", [])]), "0 dimensions"),
    "2^32-1 dimensions": (build(tensors=[string(b"a") + b"\xff" * 4]), "4,294,967,295 dimensions"),
    "a dimension of 0": (build(tensors=[tensor("a", [0, 4])]), "impossible shape"),
    "dimensions that overflow": (build(tensors=[tensor("a", [1 << 62, 4])]), "impossible shape"),
    "unknown tensor type": (build(tensors=[tensor("a", [32], 5)]), "unknown type 5"),
    "broken block": (build(tensors=[tensor("a", [100, 4], Q4_K)]), "no multiple of 256"),
    "crooked offset": (build(tensors=[tensor("a", [8], 0, 3)]), "multiple of 32"),
    "tensor beyond the end": (build(tensors=[tensor("a", [256], 0, 1 << 40)]), "goes to byte"),
    "overlap": (build(tensors=[tensor("a", [64]), tensor("b", [64], 0, 32)]), "'a' and 'b' overlap"),
    "same name twice": (build(tensors=[tensor("a", [8]), tensor("a", [8], 0, 32)]), "'a' occurs 2 times"),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_it_refuses_a_crafted_file_with_the_reason(case: str, path: Path) -> None:
    content, reason = CRAFTED[case]
    with pytest.raises(ModelRefused) as refusal:
        read(path, content)
    assert reason in str(refusal.value)
    assert str(refusal.value).startswith("model.gguf cannot be used: ")
    assert str(refusal.value).endswith(".")


def test_it_refuses_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    places = [
        tmp_path,
        *(tmp_path / name for name in ("pipe", "nothing", "loop", "dangling", "\udcff.gguf", "x" * 300)),
    ]
    for place in (*places, Path("/dev/zero"), Path("nul\0")):
        with pytest.raises(ModelRefused, match=r"\.$"):
            read_header(place)


def test_it_refuses_a_starter_that_is_cut_off_at_any_percent(path: Path) -> None:
    whole = STARTER.read_bytes()
    for percent in range(100):
        with pytest.raises(ModelRefused, match=r"is empty|ends in the middle|it ends at byte"):
            read(path, whole[: len(whole) * percent // 100])


@pytest.mark.parametrize(
    ("whole", "head", "times"),
    [(build(), len(build()) - len(DATA), 1500), (STARTER.read_bytes(), HEAD_OF_STARTER, 150)],
    ids=["crafted", "starter"],
)
def test_it_answers_flipped_bits_with_a_header_or_a_refusal(whole: bytes, head: int, times: int, path: Path) -> None:
    judged = [judge(path, content) for content in mutants(whole, head, times)]
    assert judged.count(None) > times / 3


def test_it_reads_a_large_vocabulary_through_a_small_buffer(path: Path) -> None:
    tokens = b"".join(string(b"token%d" % i) for i in range(150_000))
    big = array("tokenizer.ggml.tokens", STRING, 150_000, tokens)
    assert read(path, build([*KEYS[:-1], big])).vocab_size == 150_000


def test_it_leaves_no_file_open(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for content in (build(), b"", b"GGUF"):
        try:
            read(path, content)
        except ModelRefused:
            continue
    assert len(os.listdir("/proc/self/fd")) == before
