"""A throw-away process that may crash, hang or be killed: started, heard line by line, and gone with its asker.

The upper half runs in the parent and never loads llama.cpp, the lower one in the child. What is computed there is
the business of the module that is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from types import TracebackType

import msgspec

from localllm.inference.engine.host import PROJECT, child_environment

MAX_LINE = 8 << 20  # of the child's JSON; a template of 256 KiB and its escapes fit
MAX_STDERR = 16 << 10


class Child:
    """`python -m MODULE ARGUMENT … PARENT_PID`; it ends with the `async with`, also when that is cancelled.

    `order` is what it reads on stdin, for what is too long to be an argument.
    """

    def __init__(self, module: str, *arguments: str, order: bytes = b"") -> None:
        self._command = (sys.executable, "-m", module, *arguments, str(os.getpid()))
        self._order = order
        self._errors = b""

    async def __aenter__(self) -> Child:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE if self._order else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LINE,
            env=child_environment(),
            cwd=PROJECT,
            process_group=0,
        )
        self._listening = asyncio.create_task(self._keep_errors())
        if self._process.stdin is not None:
            self._process.stdin.write(self._order)
            self._process.stdin.write_eof()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listening.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    async def lines(self) -> AsyncGenerator[bytes]:
        """What it writes, until it ends; half a line, or one without an end, is the last."""
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):
            while line := await self._process.stdout.readline():
                yield line

    async def end(self) -> tuple[int, str]:
        """Wait for its exit code, and the line of its stderr that says most."""
        code = await self._process.wait()
        await self._listening
        return code, self._last_error()

    async def _keep_errors(self) -> None:
        assert self._process.stderr is not None
        while data := await self._process.stderr.read(MAX_STDERR):
            self._errors = (self._errors + data)[-MAX_STDERR:]

    def _last_error(self) -> str:
        """An assertion of ggml, or else the last line. Without the path before it."""
        lines = [line.strip() for line in self._errors.decode("utf-8", "replace").splitlines()]
        lines = [line for line in lines if "GGML_ASSERT" in line] or [line for line in lines if line]
        return re.sub(r"^/\S*/", "", lines[-1])[:300].rstrip(".") if lines else ""


def how_it_ended(code: int) -> str:
    """In words, such as “crashed with SIGABRT”."""
    if code == -signal.SIGKILL:
        return "was killed, most likely because the machine's memory was full,"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"crashed with {signal.Signals(-code).name}"
        return f"crashed with signal {-code}"
    return f"ended with code {code}"


# The child.


def speaker() -> Callable[[msgspec.Struct], None]:
    """How to tell the parent a line. llama.cpp may print what it likes: only this writes to the real stdout."""
    stdout = os.dup(1)
    os.dup2(2, 1)

    def tell(line: msgspec.Struct) -> None:
        data = msgspec.json.encode(line) + b"\n"
        while data:
            data = data[os.write(stdout, data) :]

    return tell


def limit_memory() -> None:
    """Leave no core file, take no more than the machine has, be the first to go when memory is short."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
        # Counts what is allocated, not the file that is mapped, nor the address space a GPU reserves.
        lower(resource.RLIMIT_DATA, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def lower(limit: int, value: int) -> None:
    """Set a soft limit, unless a tighter one holds already."""
    bounds = [value, *resource.getrlimit(limit)]
    tightest = min(bound for bound in bounds if bound != resource.RLIM_INFINITY)
    resource.setrlimit(limit, (tightest, bounds[2]))
