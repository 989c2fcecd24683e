"""The worker with one KV cache for all slots (`kv_unified`), to measure what docs/decisions.md decides."""

from __future__ import annotations

import sys
from typing import Any

import llama_cpp

from localllm.inference.engine.worker import run

init_from_model = llama_cpp.llama_init_from_model


def init_unified(model: Any, params: Any) -> Any:
    params.kv_unified = True
    return init_from_model(model, params)


if __name__ == "__main__":
    llama_cpp.llama_init_from_model = init_unified
    run(int(sys.argv[1]), int(sys.argv[2]))
