"""Lets EngineHost start another program than the product's worker, which then is that worker, altered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

WORKER = "localllm.inference.engine.worker"


@contextlib.contextmanager
def replaced_by(module: str) -> Iterator[None]:
    """Start `module` in place of the worker, with the same arguments."""
    start = asyncio.create_subprocess_exec

    async def start_module(*command: Any, **options: Any) -> asyncio.subprocess.Process:
        return await start(*(module if part == WORKER else part for part in command), **options)

    asyncio.create_subprocess_exec = start_module
    try:
        yield
    finally:
        asyncio.create_subprocess_exec = start
