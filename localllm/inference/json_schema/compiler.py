"""Compiles schemas in a child process, so that a hostile one costs two seconds and nothing else.

The child has a limit of memory, no secrets and no network use; it is replaced when it does not answer.
Run as `python -m localllm.inference.json_schema.compiler`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import resource
import struct
import sys
from collections import OrderedDict
from pathlib import Path

import msgspec

from localllm.inference.engine.host import child_environment
from localllm.inference.json_schema.document import MAX_BYTES, Document
from localllm.inference.json_schema.errors import SchemaRefused
from localllm.inference.json_schema.grammar import CompiledSchema, ExtraProperties, Whitespace, compile_schema

TIMEOUT_S = 2.0
START_S = 30.0
MAX_CACHED = 256
MAX_MEMORY = 4 << 30  # of address space; llguidance reserves more than it uses
PROJECT = Path(__file__).parents[3]
_LENGTH = struct.Struct("<I")


class Request(msgspec.Struct, frozen=True):
    text: str
    whitespace: Whitespace
    extra_properties: ExtraProperties


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """A SchemaRefused on its way to the parent."""

    message: str
    path: str
    keyword: str | None
    kind: str


class Compiled(msgspec.Struct, frozen=True, tag=True):
    schema: CompiledSchema


_encoder = msgspec.msgpack.Encoder()
_request = msgspec.msgpack.Decoder(Request)
_answer = msgspec.msgpack.Decoder(Compiled | Refusal)


class SchemaCompiler:
    """Compiles one schema at a time; what was compiled is remembered.

    The child belongs to one event loop: called from another one, the compiler starts another child.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()
        self._child: asyncio.subprocess.Process | None = None
        self._known: OrderedDict[str, CompiledSchema | SchemaRefused] = OrderedDict()

    async def compile(
        self, text: str, *, whitespace: Whitespace = "bounded", extra_properties: ExtraProperties = "forbid"
    ) -> CompiledSchema:
        """Raises SchemaRefused for a schema that cannot be used, or not in time."""
        if len(text) > MAX_BYTES:
            Document(text)  # says so
        key = hashlib.sha256(f"{whitespace} {extra_properties} {text}".encode("utf-8", "replace")).hexdigest()
        self._settle_in()
        async with self._lock:
            known = self._known.pop(key, None) or await self._ask(Request(text, whitespace, extra_properties))
            self._known[key] = known
            while len(self._known) > MAX_CACHED:
                self._known.popitem(last=False)
        if isinstance(known, SchemaRefused):
            raise known
        return known

    def _settle_in(self) -> None:
        """Leave behind what belongs to a loop that is not this one. Its child ends when its pipe is closed."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._lock, self._child = loop, asyncio.Lock(), None

    async def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    async def _ask(self, request: Request) -> CompiledSchema | SchemaRefused:
        try:
            answer = await self._exchange(request)
        except TimeoutError:
            await self.close()
            return SchemaRefused(
                f"The schema took more than {self._timeout_s:.0f} s to compile and was given up. "
                "Make it smaller: fewer alternatives, patterns and optional properties."
            )
        except (asyncio.IncompleteReadError, ConnectionError):
            await self.close()
            return SchemaRefused(
                "The schema could not be compiled: it needs too much memory. "
                "Make it smaller: fewer alternatives, patterns and optional properties."
            )
        except BaseException:
            await self.close()  # half an answer may still be on its way
            raise
        if isinstance(answer, Compiled):
            return answer.schema
        kind = "unsatisfiable" if answer.kind == "unsatisfiable" else "unsupported"
        return SchemaRefused(answer.message, path=answer.path, keyword=answer.keyword, kind=kind)  # type: ignore[arg-type]

    async def _exchange(self, request: Request) -> Compiled | Refusal:
        if self._child is None:
            async with asyncio.timeout(START_S):
                self._child = await self._start()
        assert self._child.stdin is not None
        self._child.stdin.write(_frame(_encoder.encode(request)))
        async with asyncio.timeout(self._timeout_s):
            reply: Compiled | Refusal = _answer.decode(await self._read(self._child))
            return reply

    async def _start(self) -> asyncio.subprocess.Process:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "localllm.inference.json_schema.compiler", env=child_environment(), cwd=PROJECT,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            process_group=0,
        )  # fmt: skip
        await self._read(child)  # it is ready
        return child

    async def _read(self, child: asyncio.subprocess.Process) -> bytes:
        assert child.stdout is not None
        (size,) = _LENGTH.unpack(await child.stdout.readexactly(_LENGTH.size))
        return await child.stdout.readexactly(size)


def _frame(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body


def answer(request: Request) -> Compiled | Refusal:
    try:
        return Compiled(
            compile_schema(request.text, whitespace=request.whitespace, extra_properties=request.extra_properties)
        )
    except SchemaRefused as exc:
        return Refusal(str(exc), exc.path, exc.keyword, exc.kind)
    except RecursionError:
        return Refusal("The schema nests or refers too deep to be compiled. Flatten it.", "", None, "unsupported")


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    body = b""
    while True:
        sink.write(_frame(body))
        sink.flush()
        head = source.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return  # the parent is gone
        body = _encoder.encode(answer(_request.decode(source.read(_LENGTH.unpack(head)[0]))))


if __name__ == "__main__":
    main()
