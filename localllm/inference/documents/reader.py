"""Reads files in throw-away child processes, so that a hostile one costs some seconds and nothing else.

The child is limited in memory, computing time and output, sees no secrets, and ends with its one file.
Run as `python -m localllm.inference.documents.reader`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys

import msgspec

from localllm.inference.documents.extraction import Extract, extract
from localllm.inference.engine.child import lower
from localllm.inference.engine.host import PROJECT, child_environment
from localllm.inference.errors import DocumentRefused

MAX_BYTES = 10 << 20  # of a file
MAX_MEMORY = 1 << 30  # of address space
MAX_CPU_S = 20
TIMEOUT_S = 60.0  # on the clock of a busy machine
MAX_ANSWER = 16 << 20  # the longest text, should each character take four bytes, and its offsets
AT_ONCE = 2

_turns = asyncio.Semaphore(AT_ONCE)


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """A DocumentRefused on its way to the parent."""

    reason: str


class File(msgspec.Struct, frozen=True):
    data: bytes
    name: str


_answer = msgspec.msgpack.Decoder(Extract | Refusal)


async def read(data: bytes, name: str) -> Extract:
    """Raises DocumentRefused."""
    if len(data) > MAX_BYTES:
        raise DocumentRefused(too_large(len(data)))
    async with _turns:
        answer = await _ask(msgspec.msgpack.encode(File(data, name)))
    if isinstance(answer, Refusal):
        raise DocumentRefused(answer.reason)
    return answer


def too_large(size: int) -> str:
    return f"The file has {size / 1e6:.1f} MB; {MAX_BYTES / 1e6:.1f} MB at most are taken. Divide it."


async def _ask(request: bytes) -> Extract | Refusal:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "localllm.inference.documents.reader", env=child_environment(), cwd=PROJECT,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        process_group=0,
    )  # fmt: skip
    try:
        async with asyncio.timeout(TIMEOUT_S):
            found = await _exchange(child, request)
            return _answer.decode(found) if found else _how_it_ended(await child.wait())
    except (TimeoutError, asyncio.LimitOverrunError):
        return _how_it_ended(-signal.SIGXCPU)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()


async def _exchange(child: asyncio.subprocess.Process, request: bytes) -> bytes:
    assert child.stdin is not None and child.stdout is not None
    with contextlib.suppress(ConnectionError):  # it is dead already; its code says why
        child.stdin.write(request)
        await child.stdin.drain()
        child.stdin.close()
    found = bytearray()
    while len(found) <= MAX_ANSWER and (piece := await child.stdout.read(1 << 16)):
        found += piece
    return bytes(found)


def _how_it_ended(code: int) -> Refusal:
    if code == -signal.SIGXCPU:
        return Refusal(f"The file took more than {MAX_CPU_S} s to read and was given up. Save it anew, or divide it.")
    return Refusal("The file needs too much memory to read and was given up. Save it anew, or divide it.")


def main() -> None:
    sink = os.dup(1)
    os.dup2(2, 1)  # whatever is printed is no answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lower(resource.RLIMIT_FSIZE, 0)
    lower(resource.RLIMIT_AS, MAX_MEMORY)
    lower(resource.RLIMIT_CPU, MAX_CPU_S)
    file = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=File)
    try:
        answer: Extract | Refusal = extract(file.data, file.name)
    except DocumentRefused as exc:
        answer = Refusal(str(exc))
    with os.fdopen(sink, "wb") as pipe:
        pipe.write(msgspec.msgpack.encode(answer))


if __name__ == "__main__":
    main()
