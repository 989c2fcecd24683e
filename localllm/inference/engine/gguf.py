"""What the header of a GGUF file says, checked to its last length before anything native reads the file.

Knows the format (versions 2 and 3, little-endian) and the sizes of ggml's tensor types; knows nothing of
llama.cpp. Nothing is allocated because the file asks for it, and whatever its bytes are, the answer is a
`Header` or `ModelRefused`.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path, PurePath
from typing import BinaryIO, Literal, NamedTuple, NoReturn

from localllm.inference.errors import ModelRefused

MAGIC = b"GGUF"
VERSIONS = (2, 3)

# Far above every model known, far below what would hurt.
MAX_METADATA = 64 << 20
MAX_KEYS = 4096
MAX_TENSORS = 20_000
MAX_NAME = 256
MAX_TOKEN = 64 << 10
MAX_TEMPLATE = 256 << 10
MAX_STRING = 1 << 20
MAX_ARRAY = 2_000_000
MAX_ALIGNMENT = 4096
MAX_DIMENSIONS = 4
MAX_LAYERS = 1024
MAX_CONTEXT = 1 << 27
MAX_WIDTH = 1 << 20

SPLIT = re.compile(r"(?P<stem>.+)-00001-of-(?P<count>\d{5})\.gguf")  # the first part, as llama.cpp names it
FIRST_READ = 2 << 20  # of a file that lies elsewhere; a common header takes 2 to 8 MiB

_BUFFER = 1 << 20
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: _U32,
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: _U64,
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_INTEGERS = (0, 1, 2, 3, 4, 5, 10, 11)
_STRING, _ARRAY = 8, 9

# llama.cpp reads these arrays as raw memory of exactly these element types.
_ELEMENT_TYPES = {
    "tokenizer.ggml.tokens": (_STRING,),
    "tokenizer.ggml.merges": (_STRING,),
    "tokenizer.ggml.scores": (6,),
    "tokenizer.ggml.token_type": (4, 5),
    "tokenizer.ggml.precompiled_charsmap": (0, 1),
}


class TensorType(NamedTuple):
    """One of ggml's number formats: `block` weights take `size` bytes."""

    name: str
    block: int
    size: int


TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1", 32, 36),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
    42: TensorType("Q2_0", 64, 18),
}

# `general.file_type`: the recipe by which the whole file was quantised.
FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
}
_GUESSED = 1024  # a flag beside the file type

# How the vectors of a text's tokens become one vector. "": this model writes instead.
Pooling = Literal["", "mean", "cls", "last"]
_POOLINGS: dict[int, Pooling] = {0: "", 1: "mean", 2: "cls", 3: "last"}
_RANK = 4  # scores pairs of texts
# They read a text in both directions, so nothing can be written with them.
ENCODERS = (
    *("bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert"),
    *("gemma-embedding", "llama-embed"),
)


def pooling_of(architecture: str, number: int | None) -> Pooling | None:
    """What `<architecture>.pooling_type` means; None for one that makes no vectors of texts."""
    pooling = _POOLINGS.get(number or 0)
    return "mean" if pooling == "" and architecture in ENCODERS else pooling


_TYPES_BY_NAME = {type_.name: type_ for type_ in TENSOR_TYPES.values()}


class Tensor(NamedTuple):
    """One tensor of a model. `shape` begins with the length of a row, as ggml has it."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        type_ = _TYPES_BY_NAME[self.type]
        return self.num_elements // type_.block * type_.size


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a model file says of itself. Lengths are in tokens, sizes in bytes, widths in numbers."""

    architecture: str
    name: str
    size_bytes: int
    tensor_bytes: int
    num_parameters: int
    quantisation: str  # "Q4_K_M"; the commonest tensor type where the file names no recipe
    context_length: int  # the trained window, scaling included
    num_layers: int
    embedding_length: int
    num_heads: int  # the largest of all layers; 0 without attention
    kv_heads: tuple[int, ...]  # of each layer; 0 where it has no KV cache
    key_length: int  # per head
    value_length: int
    state_length: int  # numbers that a recurrent layer keeps of each conversation; 0 without such layers
    feed_forward_length: int  # the widest; of all experts that are used at once
    expert_share: float  # of a mixture's experts, those that one token uses; 1 without experts
    vocab_size: int
    tokenizer: str  # "gpt2", "llama", "bert", …
    add_bos: bool | None  # None: the tokenizer's own habit
    rope_scaling: str  # "yarn", "linear", "longrope"; "" for none
    pooling: Pooling  # of an embedding model
    chat_template: str  # Jinja; "" for none
    tensors: tuple[Tensor, ...]

    @property
    def is_embedding(self) -> bool:
        """Does it make vectors of texts, and no answers?"""
        return bool(self.pooling)

    @property
    def num_kv_heads(self) -> int:
        """The largest of all layers."""
        return max(self.kv_heads)


def parts(path: Path) -> list[Path]:
    """All files of the model whose first one is `path`, as their names have it."""
    match = SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    stem, count = match["stem"], match["count"]
    return [path.with_name(f"{stem}-{number:05}-of-{count}.gguf") for number in range(1, int(count) + 1)]


def check_name(path: Path) -> None:
    """Raises ModelRefused where it has bytes that are no text."""
    try:
        str(path).encode()
    except UnicodeEncodeError as exc:
        raise ModelRefused(f"{str(path)!r} is no path in UTF-8. Rename the file or its folder.") from exc


def read_header(path: Path) -> Header:
    """Read and check the header of the file at `path`; raises ModelRefused with the reason.

    Of a split file `path` is the first part, and the others lie beside it.
    """
    first = _parse(path)
    others = [_parse(path.with_name(name)) for name in first.names_of_others()]
    return first.header(others)


def read_beginning(path: Path, size: int, name: str) -> Header | None:
    """The header of a file that is to have this size and name, of which `path` holds the beginning.

    None while the header is not whole. Raises ModelRefused.
    """
    with path.open("rb", buffering=0) as file:
        parser = _Parser(file, size, PurePath(name), is_beginning=True)
        try:
            parser.parse()
        except _NeedsMore:
            return None
        return parser.header([])


async def fetch_header(read: Callable[[int, int, int], Awaitable[bytes]], *, sizes: Sequence[int], name: str) -> Header:
    """The same of a file that lies elsewhere, in parts of these `sizes`: `read(part, start, length)` gives a range.

    Reads from the front, as much again each time, until the header is whole.
    """
    first, *others = [await _fetch(read, part, size, name) for part, size in enumerate(sizes)]
    return first.header(others)


def _parse(path: Path) -> _Parser:
    try:
        with _open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            parser = _Parser(file, size, path)
            parser.parse()
            return parser
    except OSError as exc:
        raise ModelRefused(
            f"{path.name} cannot be read: {exc.strerror or exc}. Give the path of a .gguf file."
        ) from exc


async def _fetch(read: Callable[[int, int, int], Awaitable[bytes]], part: int, size: int, name: str) -> _Parser:
    beginning = b""
    while True:
        more = await read(part, len(beginning), max(len(beginning), FIRST_READ))
        beginning += more
        parser = _Parser(BytesIO(beginning), size, PurePath(name), is_beginning=bool(more))
        try:
            parser.parse()
        except _NeedsMore:
            continue
        return parser


@contextmanager
def _open_regular(path: Path) -> Iterator[BinaryIO]:
    check_name(path)
    # Non-blocking, so that opening a named pipe does not wait for a writer.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as exc:  # a NUL in the name
        raise ModelRefused(f"{path.name!r} is no possible file name.") from exc
    with open(fd, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ModelRefused(f"{path.name} is no regular file. Give the path of a .gguf file.")
        yield file


class _Array(NamedTuple):
    """An array of the metadata. `values` are kept only of short arrays of integers (one per layer)."""

    element_type: int
    length: int
    values: tuple[int, ...] = ()


_Value = int | float | bool | str | _Array


class _Placed(NamedTuple):
    offset: int
    tensor: Tensor


class _NeedsMore(Exception):
    """The header goes on beyond the bytes at hand."""


class _Parser:
    """Reads one file from front to back through a small buffer; with `is_beginning`, as much of it as is at hand."""

    def __init__(self, file: BinaryIO, size: int, path: PurePath, *, is_beginning: bool = False) -> None:
        self._file = file
        self._size = size
        self._path = path
        self._is_beginning = is_beginning
        self._end = min(size, MAX_METADATA)
        self._buffer = b""
        self._start = 0  # where in the file the buffer begins
        self._pos = 0  # where in the buffer the next byte to be read lies
        self._metadata: dict[str, _Value] = {}
        self._tensors: tuple[Tensor, ...] = ()

    # The format, top down.

    def parse(self) -> None:
        if self._size == 0:
            self._refuse("it is empty")
        magic = self._take(4)
        if magic != MAGIC:
            self._refuse(
                f"it is no GGUF file: it begins with {_spelled(magic)} instead of {_spelled(MAGIC)}",
                "Give a model in the GGUF format",
            )
        self._check_version(self._u32())
        num_tensors, num_keys = self._u64(), self._u64()
        if num_tensors > MAX_TENSORS or num_keys > MAX_KEYS:
            self._refuse(
                f"it claims {num_tensors:,} tensors and {num_keys:,} keys; "
                f"at most {MAX_TENSORS:,} and {MAX_KEYS:,} are possible"
            )
        for _ in range(num_keys):
            self._read_key()
        alignment = self._check_alignment()
        placed = [self._tensor(alignment) for _ in range(num_tensors)]
        self._check_layout(placed, alignment)
        self._tensors = tuple(tensor for _, tensor in placed)

    def names_of_others(self) -> list[str]:
        """Where llama.cpp looks for the other parts of a split file."""
        match = SPLIT.fullmatch(self._path.name)
        if match is None or int(match["count"]) != self._num_parts:
            return []
        return [f"{match['stem']}-{number:05}-of-{match['count']}.gguf" for number in range(2, self._num_parts + 1)]

    def header(self, others: Sequence[_Parser]) -> Header:
        """What the file says, with the other parts of a split one."""
        self._check_kind()
        self._check_parts(others)
        tensors = self._tensors + tuple(tensor for other in others for tensor in other._tensors)
        if not tensors:
            self._refuse("it holds a vocabulary at most, but no weights", "Download the model itself")
        name, count = Counter(tensor.name for tensor in tensors).most_common(1)[0]
        if count > 1:
            self._refuse(f"the tensor {_shown(name)} occurs {count} times")
        return self._header(tensors, self._size + sum(other._size for other in others))

    def _check_version(self, version: int) -> None:
        if version in VERSIONS:
            return
        if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
            self._refuse("it is written for big-endian machines", "Download the little-endian file")
        self._refuse(f"its GGUF version is {version}; {VERSIONS[0]} or {VERSIONS[-1]} can be read")

    def _read_key(self) -> None:
        key = self._string(MAX_NAME, "a key").decode("utf-8", "replace")
        if key in self._metadata:
            self._refuse(f"the key {_shown(key)} occurs twice")
        value_type = self._u32()
        if value_type == _STRING:
            limit = MAX_TEMPLATE if key.startswith("tokenizer.chat_template") else MAX_STRING
            self._metadata[key] = self._string(limit, _shown(key)).decode("utf-8", "replace")
        elif value_type == _ARRAY:
            self._metadata[key] = self._array(key)
        else:
            self._metadata[key] = self._scalar(value_type, key)

    def _scalar(self, value_type: int, key: str) -> int | float | bool:
        form = _SCALARS.get(value_type)
        if form is None:
            self._refuse(f"the value of {_shown(key)} has the unknown type {value_type}")
        value: int | float | bool = form.unpack(self._take(form.size))[0]
        return value

    def _array(self, key: str) -> _Array:
        element_type, count = self._u32(), self._u64()
        if count > MAX_ARRAY:
            self._refuse(f"{_shown(key)} claims {count:,} elements; at most {MAX_ARRAY:,} are possible")
        if element_type not in _ELEMENT_TYPES.get(key, (element_type,)):
            self._refuse(f"the elements of {_shown(key)} have the wrong type {element_type}")
        if element_type == _STRING:
            self._skip_strings(count, key)
            return _Array(element_type, count)
        form = _SCALARS.get(element_type)
        if form is None:
            self._refuse(f"the elements of {_shown(key)} have the unknown type {element_type}")
        if count <= MAX_LAYERS and element_type in _INTEGERS:
            values = tuple(form.unpack(self._take(form.size))[0] for _ in range(count))
            return _Array(element_type, count, values)
        self._skip(form.size * count)
        return _Array(element_type, count)

    def _tensor(self, alignment: int) -> _Placed:
        raw_name = self._string(MAX_NAME, "a tensor's name").decode("utf-8", "replace")
        name = _shown(raw_name)
        num_dimensions = self._u32()
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            self._refuse(f"the tensor {name} has {num_dimensions:,} dimensions; 1 to 4 are possible")
        shape = tuple(self._u64() for _ in range(num_dimensions))
        kind, offset = self._u32(), self._u64()
        type_ = TENSOR_TYPES.get(kind)
        if type_ is None:
            self._refuse(f"the tensor {name} has the unknown type {kind}", "Choose another quantisation of this model")
        # Whatever the type, a byte holds at most 8 weights.
        if not 0 < prod(shape) <= 8 * self._size:
            self._refuse(f"the tensor {name} has the impossible shape {list(shape)}")
        if shape[0] % type_.block:
            self._refuse(f"rows of the tensor {name} hold {shape[0]:,} weights, no multiple of {type_.block}")
        if offset % alignment:
            self._refuse(f"the tensor {name} does not begin at a multiple of {alignment} bytes")
        return _Placed(offset, Tensor(raw_name, type_.name, shape))

    # What the parts mean together.

    def _check_kind(self) -> None:
        kind = self._text("general.type") or "model"
        if kind != "model":
            self._refuse(f"it is of the kind {_shown(kind)} and not a model by itself", "Give the model's file")

    @property
    def _num_parts(self) -> int:
        return self._integer("split.count", 0, 0xFFFF, default=0) or 1

    def _check_parts(self, others: Sequence[_Parser]) -> None:
        num_parts = self._num_parts
        if len(others) != num_parts - 1 or self._integer("split.no", 0, 0xFFFF, default=0) != 0:
            self._refuse(
                f"it is one of {num_parts} parts of a model",
                f"Keep all in one folder, named …-00001-of-{num_parts:05}.gguf and so on, and give the first",
            )
        for number, other in enumerate(others, start=1):
            if (other._integer("split.no", 0, 0xFFFF, default=0), other._num_parts) != (number, num_parts):
                other._refuse(f"it is not part {number + 1} of {num_parts}")

    def _check_alignment(self) -> int:
        alignment = self._integer("general.alignment", 1, MAX_ALIGNMENT, default=32)
        if alignment < 8 or alignment & (alignment - 1):
            self._refuse(f"its alignment is {alignment}, no power of two from 8 to {MAX_ALIGNMENT}")
        return alignment

    def _check_layout(self, placed: list[_Placed], alignment: int) -> None:
        base = -(-self._tell() // alignment) * alignment
        end, previous = 0, ""
        for offset, tensor in sorted(placed):
            if offset < end:
                self._refuse(f"the tensors {_shown(previous)} and {_shown(tensor.name)} overlap")
            end, previous = offset + tensor.num_bytes, tensor.name
            if base + end > self._size:
                self._refuse(
                    f"it ends at byte {self._size:,} but its tensor {_shown(tensor.name)} goes to byte {base + end:,}"
                )

    def _header(self, tensors: tuple[Tensor, ...], size_bytes: int) -> Header:
        architecture = self._text("general.architecture")
        if not architecture:
            self._refuse("it does not say which architecture it has")
        of = architecture + "."
        vocab_size = self._check_vocabulary()
        embedding_length = self._integer(of + "embedding_length", 1, MAX_WIDTH)
        num_heads = self._integer(of + "attention.head_count", 0, MAX_WIDTH, default=0)
        num_layers = self._integer(of + "block_count", 1, MAX_LAYERS)
        head_length = embedding_length // num_heads if num_heads else 0
        scaling = self._text(of + "rope.scaling.type")
        add_bos = self._metadata.get("tokenizer.ggml.add_bos_token")
        return Header(
            architecture=_plain(architecture),
            name=_plain(self._text("general.name")) or self._path.stem,
            size_bytes=size_bytes,
            tensor_bytes=sum(tensor.num_bytes for tensor in tensors),
            num_parameters=sum(tensor.num_elements for tensor in tensors),
            quantisation=self._quantisation(tensors),
            context_length=self._integer(of + "context_length", 1, MAX_CONTEXT),
            num_layers=num_layers,
            embedding_length=embedding_length,
            num_heads=num_heads,
            kv_heads=self._kv_heads(of, num_layers, num_heads),
            key_length=self._integer(of + "attention.key_length", 0, MAX_WIDTH, default=head_length),
            value_length=self._integer(of + "attention.value_length", 0, MAX_WIDTH, default=head_length),
            vocab_size=vocab_size,
            tokenizer=_plain(self._text("tokenizer.ggml.model")),
            add_bos=add_bos if isinstance(add_bos, bool) else None,
            state_length=self._state_length(of, embedding_length),
            feed_forward_length=self._feed_forward_length(of),
            expert_share=self._expert_share(of),
            rope_scaling="" if scaling == "none" else _plain(scaling),
            pooling=self._pooling(architecture),
            chat_template=self._text("tokenizer.chat_template"),
            tensors=tensors,
        )

    def _kv_heads(self, of: str, num_layers: int, num_heads: int) -> tuple[int, ...]:
        key = of + "attention.head_count_kv"
        most = self._integer(key, 0, MAX_WIDTH, default=num_heads)
        value = self._metadata.get(key)
        if isinstance(value, _Array):
            if value.length < num_layers:
                self._refuse(f"{_shown(key)} has {value.length:,} numbers for {num_layers:,} layers")
            return value.values[:num_layers]
        # Qwen3-Next and its kin: every so many layers one with attention, the others recurrent.
        interval = self._integer(of + "full_attention_interval", 0, MAX_LAYERS, default=0)
        num_cached = num_layers - self._integer(of + "attention.shared_kv_layers", 0, num_layers, default=0)
        return tuple(
            most if layer < num_cached and (not interval or (layer + 1) % interval == 0) else 0
            for layer in range(num_layers)
        )

    def _state_length(self, of: str, embedding_length: int) -> int:
        """As llama.cpp's llama_hparams::n_embd_r and n_embd_s have it, for Mamba, RWKV and LFM2."""

        def number(key: str) -> int:
            return self._integer(of + key, 0, MAX_WIDTH, default=0)

        if head := number("wkv.head_size"):
            return embedding_length * (head + self._integer(of + "token_shift_count", 0, 16, default=2))
        if cached := number("shortconv.l_cache"):
            return embedding_length * (cached - 1)
        inner, state = number("ssm.inner_size"), number("ssm.state_size")
        convolution = max(number("ssm.conv_kernel") - 1, 0) * (inner + 2 * number("ssm.group_count") * state)
        return convolution + state * inner

    def _feed_forward_length(self, of: str) -> int:
        dense = self._integer(of + "feed_forward_length", 0, MAX_WIDTH, default=0)
        experts = self._integer(of + "expert_used_count", 0, MAX_WIDTH, default=0)
        return max(dense, experts * self._integer(of + "expert_feed_forward_length", 0, MAX_WIDTH, default=dense))

    def _expert_share(self, of: str) -> float:
        total = self._integer(of + "expert_count", 0, MAX_WIDTH, default=0)
        return min(1.0, self._integer(of + "expert_used_count", 0, MAX_WIDTH, default=0) / total) if total else 1.0

    def _pooling(self, architecture: str) -> Pooling:
        number = self._integer(architecture + ".pooling_type", 0, 0xFFFF, default=0)
        pooling = pooling_of(architecture, number)
        if pooling is None:
            kind = "scores pairs of texts (a reranker)" if number == _RANK else f"pools by the unknown way {number}"
            self._refuse(f"it {kind}", "Choose a model that answers, or one that makes embeddings")
        return pooling

    def _check_vocabulary(self) -> int:
        tokens = self._metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, _Array) or not tokens.length:
            self._refuse("it holds no vocabulary", "Download the model itself")
        for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
            beside = self._metadata.get(key, tokens)
            if not isinstance(beside, _Array) or beside.length != tokens.length:
                self._refuse(f"{key} does not have one entry for each of its {tokens.length:,} tokens")
        return tokens.length

    def _quantisation(self, tensors: tuple[Tensor, ...]) -> str:
        file_type = self._metadata.get("general.file_type")
        if isinstance(file_type, int) and file_type & ~_GUESSED in FILE_TYPES:
            return FILE_TYPES[file_type & ~_GUESSED]
        num_bytes: Counter[str] = Counter()
        for tensor in tensors:
            num_bytes[tensor.type] += tensor.num_bytes
        return num_bytes.most_common(1)[0][0]

    def _text(self, key: str) -> str:
        value = self._metadata.get(key, "")
        if not isinstance(value, str):
            self._refuse(f"{_shown(key)} is {_described(value)} and not a text")
        return value

    def _integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """The integer at `key`, or the largest where the file has one per layer."""
        value = self._metadata.get(key, default)
        if value is None:
            self._refuse(f"it does not say its {_shown(key)}")
        numbers = value.values if isinstance(value, _Array) else (value,)
        if not numbers or any(type(number) is not int or not low <= number <= high for number in numbers):
            self._refuse(f"{_shown(key)} is {_described(value)}, not a number from {low:,} to {high:,}")
        return max(int(number) for number in numbers if isinstance(number, int))

    # The bytes.

    def _tell(self) -> int:
        return self._start + self._pos

    def _need(self, num_bytes: int) -> None:
        """Have the next `num_bytes` (bounded by the caller) in the buffer."""
        if self._pos + num_bytes <= len(self._buffer):
            return
        at = self._tell()
        if at + num_bytes > self._end:
            self._refuse_cut_off()
        self._file.seek(at)
        self._buffer = self._file.read(min(max(num_bytes, _BUFFER), self._end - at))
        self._start, self._pos = at, 0
        if len(self._buffer) < num_bytes:
            if self._is_beginning:
                raise _NeedsMore
            self._refuse_cut_off()  # it shrank while being read

    def _take(self, num_bytes: int) -> bytes:
        self._need(num_bytes)
        taken = self._buffer[self._pos : self._pos + num_bytes]
        self._pos += num_bytes
        return taken

    def _skip(self, num_bytes: int) -> None:
        if self._tell() + num_bytes > self._end:
            self._refuse_cut_off()
        self._pos += num_bytes

    def _skip_strings(self, count: int, key: str) -> None:
        # 300,000 times for a common vocabulary and its merges: local names, no calls.
        buffer, pos, unpack = self._buffer, self._pos, _U64.unpack_from
        for _ in range(count):
            if pos + 8 > len(buffer):
                self._pos = pos
                self._need(8)
                buffer, pos = self._buffer, self._pos
            (length,) = unpack(buffer, pos)
            if length > MAX_TOKEN:
                self._refuse(f"an element of {_shown(key)} claims {length:,} bytes")
            pos += 8 + length
        self._pos = pos
        self._skip(0)

    def _u32(self) -> int:
        return int.from_bytes(self._take(4), "little")

    def _u64(self) -> int:
        return int.from_bytes(self._take(8), "little")

    def _string(self, limit: int, what: str) -> bytes:
        length = self._u64()
        if length > limit:
            self._refuse(f"{what} claims {length:,} bytes; at most {limit:,} are possible")
        return self._take(length)

    def _refuse_cut_off(self) -> NoReturn:
        if self._end < self._size:
            self._refuse(f"its header goes on beyond {MAX_METADATA:,} bytes")
        self._refuse(f"it ends in the middle of its header, at byte {self._size:,}")

    def _refuse(self, reason: str, way_out: str = "Download it again, or from another source") -> NoReturn:
        raise ModelRefused(f"{self._path.name} cannot be used: {reason}. {way_out}.")


def _spelled(some: bytes) -> str:
    """As characters where they are some, else as numbers."""
    return f"“{some.decode()}”" if some.isascii() and some.decode().isprintable() else f"the bytes {some.hex(' ')}"


def _plain(text: str) -> str:
    """A text of the file, fit to be shown in a line."""
    return "".join(char for char in text if char.isprintable())[:200].strip()


def _shown(text: str) -> str:
    return f"'{_plain(text)[:80]}'"


def _described(value: _Value) -> str:
    if isinstance(value, _Array):
        return f"a list of {value.length:,}"
    return _shown(value) if isinstance(value, str) else str(value)
