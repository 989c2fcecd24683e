"""How one model is loaded, and the CPUs that there are for it. Knows no model file and no llama.cpp."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from localllm.inference import control_groups
from localllm.inference.control_groups import GROUPS, PROC, read

KVType = Literal["f16", "q8_0", "q4_0"]
RopeScaling = Literal["none", "linear", "yarn"]
FlashAttention = Literal["auto", "on", "off"]


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one worker. `n_ctx` is the window of one conversation, in tokens."""

    n_ctx: int = 4096
    num_slots: int = 4
    n_batch: int = 512
    n_threads: int = 0  # 0: the CPUs this process may really use
    n_gpu_layers: int = -1  # -1: as many as have room; llama.cpp itself puts all there, where a GPU is
    use_mmap: bool = True
    use_mlock: bool = False
    numa: bool = False
    flash_attention: FlashAttention = "auto"
    kv_type: KVType = "f16"
    rope_scaling: RopeScaling = "none"
    rope_scale: float = 1.0  # how many times the trained window is stretched
    max_waiting: int = 64  # requests in the queue before new ones are refused

    def __post_init__(self) -> None:
        for name in ("n_ctx", "num_slots", "n_batch", "max_waiting"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.rope_scaling != "none" and self.rope_scale <= 1:
            raise ValueError(f"rope_scale is {self.rope_scale}; to stretch the window it must be over 1.")
        if self.kv_type != "f16" and self.flash_attention == "off":
            raise ValueError(f"kv_type is {self.kv_type}; without flash attention llama.cpp takes f16 only.")

    def window(self, trained: int) -> int:
        """The context window of one conversation for a model trained on `trained` tokens.

        Beyond its trained length a model writes nonsense, so the window is never larger unless the
        positions are scaled.
        """
        stretch = self.rope_scale if self.rope_scaling != "none" else 1.0
        return min(self.n_ctx, int(trained * stretch)) if trained else self.n_ctx


def cpu_name() -> str:
    """What the machine calls its CPU; its architecture where it does not say."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def num_available_cpus(proc: Path = PROC, cgroups: Path = GROUPS) -> int:
    """CPUs this process may use: its affinity mask, cut to the smallest quota of its control groups."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cpus, *(max(1, round(quota)) for quota in _quotas(proc, cgroups))])


def _quotas(proc: Path, cgroups: Path) -> Iterator[float]:
    """CPUs, of each control group that has a quota."""
    for folder, version in control_groups.folders("cpu", proc, cgroups):
        names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        match " ".join(read(folder / name) for name in names).split():
            case [quota, period] if quota.isdigit() and period.isdigit():  # else "max" or -1
                yield int(quota) / int(period)
