"""What a model takes of the machine, told from its header alone: its memory, and so how fast it can be.

Knows what llama.cpp allocates on a CPU and what the kernel says of memory; loads nothing. The account is held
against worker processes by `python -m tests.bench fit`.
"""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from localllm.inference import control_groups
from localllm.inference.amounts import size
from localllm.inference.control_groups import GROUPS, PROC, read
from localllm.inference.engine.gguf import MAX_CONTEXT, TENSOR_TYPES, Header, Tensor
from localllm.inference.engine.settings import EngineSettings, num_available_cpus

Verdict = Literal["fits", "smaller context", "slow", "does not fit"]

SHARE = 0.8
MIN_WINDOW = 1024  # tokens; with less there is no room for a question and its answer
MAX_MISSING = 0.25  # of the weights; reading more than that from disk for each token is no use to anybody
WINDOW_STEP = 256  # llama.cpp rounds a window up to a multiple of this

# A worker without its model: Python, numpy, llama.cpp; then each token's text, its merge and its place in a table.
PROCESS_BYTES = 66_000_000
BYTES_PER_TOKEN = 330
ACTIVATION_BYTES = 4  # f32
WORK_BYTES = 34 / 32  # per number; a batch is quantised to Q8 before it meets the weights

KV_BYTES = {type_.name.lower(): type_.size / type_.block for type_ in TENSOR_TYPES.values()}
# Encoders see the whole text at once; llama.cpp gives them no KV cache.
WITHOUT_CACHE = ("bert", "eurobert", "gemma-embedding")
# ggml_repack_get_optimal_repack_type: what each instruction set wants in an order of its own.
REPACKED = {
    "avx2": {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"},
    "avx512f": {"Q2_K"},
    "asimddp": {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4", "Q1_0"},
}
REPACKED_ROWS = 8  # of a tensor, or a multiple

# Each token is computed from all weights, so writing is as fast as they are read. Two CPUs wrote 25 tokens a second
# from 0.4 GB; a handful of them reads as fast as the memory of a usual machine gives.
CPU_BYTES_PER_S = 5_000_000_000
MAX_READING_CPUS = 6
TOKEN_S = 0.003  # what a token takes beside: sampling, and starting and joining threads in each layer


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Memory in bytes, and CPUs, cut to the limits of the control group; and the CPU's instruction sets."""

    total_bytes: int
    available_bytes: int
    gpu_bytes: int | None = None  # of graphics memory that a model may still take; None: there is none of its own
    cpu_flags: frozenset[str] = frozenset()
    num_cpus: int = 0  # 0: not known
    share: float = SHARE  # of its memory, for all models together

    @property
    def budget_bytes(self) -> int:
        return int(self.total_bytes * self.share)

    @cached_property
    def repacked_types(self) -> frozenset[str]:
        """Tensor types of which llama.cpp keeps a copy in the order that suits this CPU."""
        return frozenset().union(*(types for flag, types in REPACKED.items() if flag in self.cpu_flags))

    def bytes_per_s(self, num_threads: int) -> int:
        """What the CPU reads of weights with so many threads; 0 threads are one for each CPU."""
        return min(num_threads or self.num_cpus, self.num_cpus, MAX_READING_CPUS) * CPU_BYTES_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one loaded model takes, in bytes, with a `window` of so many tokens for each conversation.

    What lies on a GPU is in `gpu_bytes`; all other sizes are of the machine's own memory. `settings` are those to load
    it with: where a GPU has a memory of its own, they name the layers that have room there. llama.cpp takes -1 for all.
    """

    settings: EngineSettings
    window: int
    num_gpu_layers: int = 0  # as llama.cpp counts them: the output is one more
    gpu_bytes: int = 0
    weights_bytes: int
    repacked_bytes: int  # copies of weights
    kv_bytes: int  # KV cache, and the states of recurrent layers
    compute_bytes: int  # what a full batch touches
    process_bytes: int
    read_bytes: int  # of the weights, by the CPU for each token
    is_mapped: bool  # from the file, so that the kernel may drop it and read it again
    is_locked: bool

    @property
    def peak_bytes(self) -> int:
        """Resident after a full batch, where memory is plenty."""
        # A mapped file is read whole, and the originals of repacked weights stay in the page cache.
        return self.used_bytes + (self.repacked_bytes if self.is_mapped else 0)

    @property
    def used_bytes(self) -> int:
        """What each token is computed from. With less, parts of it are read from disk again and again."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.process_bytes

    @property
    def held_bytes(self) -> int:
        """What cannot be dropped. With less, the kernel ends the process."""
        if self.is_locked:
            return self.peak_bytes
        return self.used_bytes - (self.weights_bytes - self.repacked_bytes if self.is_mapped else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A model beside a machine. `room_bytes` is what models may still take; `max_window` is the largest that fits."""

    verdict: Verdict
    need: Need
    max_window: int  # tokens, up to the trained length; 0 where none fits
    room_bytes: int
    machine: Machine
    num_threads: int = 0  # 0: one for each CPU

    @property
    def tokens_per_s(self) -> float | None:
        """About how fast one answer is written. None where the CPU does not set the pace, or is not known."""
        rate = self.machine.bytes_per_s(self.num_threads)
        if not rate or not self.need.read_bytes or self.verdict not in ("fits", "smaller context"):
            return None
        return 1 / (self.need.read_bytes / rate + TOKEN_S)

    def __str__(self) -> str:
        need, room = size(self.need.used_bytes), size(self.room_bytes)
        match self.verdict:
            case "fits":
                return f"Fits: it needs {need} of the {room} that are free for models{self._on_gpu}."
            case "smaller context":
                return (
                    f"Fits with a context of up to {self.max_window:,} tokens: {self.need.window:,} tokens "
                    f"would need {need}, and {room} are free for models."
                )
            case "slow":
                return (
                    f"Will be slow: it needs {need} and {room} are free for models, so parts of it would be read from "
                    "disk again for each token. Choose a smaller quantisation, or unload other models."
                )
            case "does not fit":
                return (
                    f"Does not fit: it needs {need}, and {room} are free for models. "
                    "Choose a smaller model or quantisation, or unload other models."
                )

    @property
    def _on_gpu(self) -> str:
        """Graphics memory is beside it."""
        if not self.need.num_gpu_layers:
            return ""
        return f", and {size(self.need.gpu_bytes)} of graphics memory for {self.need.num_gpu_layers} layers"


def fit(header: Header, settings: EngineSettings, machine: Machine, *, loaded_bytes: int = 0) -> Fit:
    """Whether the machine has room for the model beside others, which hold `loaded_bytes` already."""
    room = max(0, min(machine.available_bytes, machine.budget_bytes - loaded_bytes))
    need = account(header, settings, machine)
    max_window = largest_window(header, settings, machine, room)
    return Fit(
        verdict=_verdict(need, room, max_window),
        need=need,
        max_window=max_window,
        room_bytes=room,
        machine=machine,
        num_threads=settings.n_threads,
    )


def _verdict(need: Need, room: int, max_window: int) -> Verdict:
    if need.window <= max_window:
        return "fits"
    if max_window >= MIN_WINDOW:
        return "smaller context"
    missing = need.used_bytes - room
    return "slow" if need.held_bytes <= room and missing <= need.weights_bytes * MAX_MISSING else "does not fit"


def largest_window(header: Header, settings: EngineSettings, machine: Machine, room: int) -> int:
    """The largest window that fits into `room` bytes, up to what the model was trained on; 0 for none."""

    def fits(window: int) -> bool:
        need = account(header, replace(settings, n_ctx=window), machine)
        return max(need.used_bytes, need.held_bytes) <= room

    longest = replace(settings, n_ctx=MAX_CONTEXT).window(header.context_length)
    if fits(longest):
        return longest
    low, high = 0, -(-longest // WINDOW_STEP)  # in steps: `low` fits or is nothing, `high` does not fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * WINDOW_STEP) else (low, middle)
    return low * WINDOW_STEP


def account(header: Header, settings: EngineSettings, machine: Machine) -> Need:
    """What the model takes, loaded with these settings."""
    window = settings.window(header.context_length)
    # Of an embedding model a batch is one window of texts, which share one cache.
    context = replace(settings, num_slots=1, n_batch=window) if header.is_embedding else settings
    cells = -(-window // WINDOW_STEP) * WINDOW_STEP
    cache = _cache_bytes(header, context, cells)
    compute_bytes = _compute_bytes(header, context, cells)
    on_gpu = _place(header, settings, cache, (machine.gpu_bytes or 0) - compute_bytes)
    return Need(
        settings=settings if machine.gpu_bytes is None else replace(settings, n_gpu_layers=on_gpu.num_layers),
        window=window,
        num_gpu_layers=on_gpu.num_layers,
        gpu_bytes=on_gpu.weights_bytes + on_gpu.cache_bytes + compute_bytes if on_gpu.num_layers else 0,
        weights_bytes=header.tensor_bytes - on_gpu.weights_bytes,
        repacked_bytes=sum(tensor.num_bytes for tensor in _repacked(header, machine) if not on_gpu.holds(tensor)),
        kv_bytes=sum(cache) - on_gpu.cache_bytes,
        # Each device has a buffer for the layers that it computes.
        compute_bytes=0 if on_gpu.num_layers > header.num_layers else compute_bytes,
        process_bytes=PROCESS_BYTES + BYTES_PER_TOKEN * header.vocab_size,
        read_bytes=0 if header.is_embedding else _read_bytes(header, on_gpu),
        is_mapped=settings.use_mmap,
        is_locked=settings.use_mlock,
    )


def _repacked(header: Header, machine: Machine) -> Iterator[Tensor]:
    for tensor in _factors(header):
        is_wanted = tensor.type in machine.repacked_types and tensor.name.endswith(".weight")
        if is_wanted and len(tensor.shape) > 1 and tensor.shape[1] % REPACKED_ROWS == 0:
            yield tensor


def _factors(header: Header) -> Iterator[Tensor]:
    """What is multiplied with. Embeddings are looked up instead, unless they are the output too."""
    is_tied = all(tensor.name != "output.weight" for tensor in header.tensors)
    tables = {"per_layer_token_embd.weight"} if is_tied else {"per_layer_token_embd.weight", "token_embd.weight"}
    return (tensor for tensor in header.tensors if tensor.name not in tables)


def _read_bytes(header: Header, on_gpu: _OnGpu) -> int:
    """What the CPU reads of the weights for each token: of a mixture, the experts that it uses."""
    return int(
        sum(
            tensor.num_bytes * (header.expert_share if "_exps." in tensor.name else 1.0)
            for tensor in _factors(header)
            if not on_gpu.holds(tensor)
        )
    )


def _cache_bytes(header: Header, settings: EngineSettings, cells: int) -> list[int]:
    """KV cache and recurrent states of each layer.

    llama.cpp's default is the full cache in layers with a sliding window too: else no prefix could be reused.
    """
    if header.architecture.endswith(WITHOUT_CACHE) or "-bert" in header.architecture:
        return [0] * header.num_layers
    per_head = settings.num_slots * cells * (header.key_length + header.value_length) * KV_BYTES[settings.kv_type]
    state = settings.num_slots * header.state_length * ACTIVATION_BYTES
    is_mixed = 0 in header.kv_heads  # then layers without a KV cache are the recurrent ones
    return [int(heads * per_head) + (0 if is_mixed and heads else state) for heads in header.kv_heads]


@dataclass(frozen=True, slots=True)
class _OnGpu:
    """The layers that lie on a GPU: llama.cpp puts the output there first, then the last layers."""

    num_layers: int
    first_layer: int
    weights_bytes: int
    cache_bytes: int

    def holds(self, tensor: Tensor) -> bool:
        layer = _layer(tensor)
        is_behind = tensor.name.startswith("output") if layer is None else layer >= self.first_layer
        return is_behind and self.num_layers > 0


def _place(header: Header, settings: EngineSettings, cache: list[int], room: int) -> _OnGpu:
    """As many layers as are wanted, or, with -1, as have room."""
    placed = _OnGpu(0, header.num_layers, 0, 0)
    if room <= 0:
        return placed
    weights: Counter[int | None] = Counter()
    for tensor in header.tensors:
        layer = header.num_layers if tensor.name.startswith("output") else _layer(tensor)
        weights[layer] += tensor.num_bytes
    is_automatic = settings.n_gpu_layers < 0
    for first in range(header.num_layers, -1, -1):  # the output counts as the layer after the last
        number = placed.num_layers + 1
        weights_bytes = placed.weights_bytes + weights[first]
        cache_bytes = placed.cache_bytes + sum(cache[first : first + 1])
        if weights_bytes + cache_bytes > room if is_automatic else number > settings.n_gpu_layers:
            break
        placed = _OnGpu(number, first, weights_bytes, cache_bytes)
    return placed


def _layer(tensor: Tensor) -> int | None:
    match = re.match(r"blk\.(\d+)\.", tensor.name)
    return int(match[1]) if match else None


def _compute_bytes(header: Header, settings: EngineSettings, cells: int) -> int:
    """llama.cpp's compute buffer for a full batch, its scratch memory for products, and the logits.

    The buffer holds the widest moment of a layer: gate, up and their product, beside the layer's input, its sum,
    its norm and its output. Without flash attention that may be all heads' scores of the whole window.
    """
    num_tokens = min(settings.n_batch, settings.num_slots * cells)
    width = max(header.embedding_length, header.num_heads * header.key_length)
    per_token = 3 * header.feed_forward_length + 4 * width
    mask_bytes = 2 * cells
    if settings.flash_attention == "off":
        per_token = max(per_token, header.num_heads * cells + 5 * width)
        mask_bytes = 4 * cells
    work = int(max(header.feed_forward_length, width) * WORK_BYTES)
    logits = 2 * settings.num_slots * header.vocab_size * ACTIVATION_BYTES
    return num_tokens * (per_token * ACTIVATION_BYTES + mask_bytes + work) + logits


# The machine.

# By version of control groups: limit, use, and how its statistics of page cache begin.
LIMIT_FILES = {
    2: ("memory.max", "memory.current", ""),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}


def this_machine(
    proc: Path = PROC,
    cgroups: Path = GROUPS,
    *,
    share: float = SHARE,
    gpu_bytes: int | None = None,
) -> Machine:
    """Memory as the kernel counts it now: page cache that can be dropped is available."""
    memory = {name: int(kb) << 10 for name, kb in re.findall(r"^(\w+):\s+(\d+) kB", read(proc / "meminfo"), re.M)}
    total = memory.get("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = memory.get("MemAvailable", total)
    for limit, used in _limits(proc, cgroups):
        total, available = min(total, limit), min(available, limit - used)
    return Machine(
        total_bytes=total,
        available_bytes=max(0, available),
        gpu_bytes=gpu_bytes,
        cpu_flags=_cpu_flags(proc),
        num_cpus=num_available_cpus(proc, cgroups),
        share=share,
    )


def _limits(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of this process's control group and of all above it."""
    for folder, version in control_groups.folders("memory", proc, cgroups):
        limit, current, prefix = LIMIT_FILES[version]
        if (text := read(folder / limit).strip()).isdigit():
            yield int(text), max(0, _used(folder, current, prefix))


def _used(folder: Path, current: str, prefix: str) -> int:
    statistics = dict(re.findall(r"^(\w+) (\d+)$", read(folder / "memory.stat"), re.M))
    cache = sum(int(statistics.get(f"{prefix}{name}", 0)) for name in ("inactive_file", "active_file"))
    return int(read(folder / current).strip() or 0) - cache


def _cpu_flags(proc: Path) -> frozenset[str]:
    """On x86 "flags", on ARM "Features"; Apple's processors have what ggml asks for."""
    if match := re.search(r"^(?:flags|Features)\s*: (.+)$", read(proc / "cpuinfo"), re.M):
        return frozenset(match[1].split())
    return frozenset({"asimddp"} if platform.machine() == "arm64" else ())


def resident_bytes(pid: int) -> int:
    """What a process has in memory now; 0 where it is gone, or the system does not tell."""
    fields = read(Path(f"/proc/{pid}/statm")).split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def peak_resident_bytes(pid: int) -> int:
    """The most that a process ever had in memory; 0 where it is gone, or the system does not tell."""
    match = re.search(r"^VmHWM:\s+(\d+) kB", read(Path(f"/proc/{pid}/status")), re.M)
    return int(match[1]) << 10 if match else 0
