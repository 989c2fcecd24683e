"""Makes a smaller file of a model by llama.cpp's quantiser, in a throw-away process.

The upper half (`quantise`) runs in the parent and never loads llama.cpp. The lower one is the child, started as
`python -m localllm.inference.engine.quantise SOURCE TARGET RECIPE PARENT_PID`, which says how far it is, one JSON
object a line. It is the second file that imports llama_cpp: the first needs a model that is loaded.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, get_args

import msgspec

from localllm.inference.amounts import size
from localllm.inference.engine.child import Child, how_it_ended, limit_memory, speaker
from localllm.inference.engine.gguf import Header, read_header
from localllm.inference.errors import ModelRefused
from localllm.inference.shapes import Quantisation

SOURCES = ("F32", "F16", "BF16", "Q8_0")  # what has lost nothing yet, or next to nothing
RECIPES: tuple[Quantisation, ...] = get_args(Quantisation)  # from the smallest to the largest
SPARE_BYTES = 64 << 20  # of the disk, for everything else
TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\]")
SIZE = re.compile(r"quant size += +([\d.]+) MiB")


class Progress(msgspec.Struct, frozen=True, tag=True):
    """How many of the tensors are done, and how large the file will be; that is known before the first one."""

    num_done: int
    num_tensors: int
    size_bytes: int


class _Refusal(msgspec.Struct, frozen=True, tag=True):
    reason: str


class _Done(msgspec.Struct, frozen=True, tag=True):
    pass


_Line = Progress | _Refusal | _Done
_lines: msgspec.json.Decoder[_Line] = msgspec.json.Decoder(_Line)


# The parent.


def recipes_for(header: Header) -> tuple[Quantisation, ...]:
    """What this file can be made into, from the smallest to the largest; nothing where it has lost too much already."""
    if header.quantisation not in SOURCES:
        return ()
    return RECIPES[:-1] if header.quantisation == RECIPES[-1] else RECIPES


def check(header: Header, recipe: str) -> Quantisation:
    """Raises ModelRefused with the reason where the file cannot be made into that."""
    possible = recipes_for(header)
    for quantisation in possible:
        if quantisation == recipe:
            return quantisation
    if not possible:
        raise ModelRefused(
            f"{header.name} is {header.quantisation} already: to quantise it once more would lose too much. "
            f"Begin with a file in one of {', '.join(SOURCES)}."
        )
    raise ModelRefused(
        f"{header.name} ({header.quantisation}) cannot be made into “{recipe}”. Choose one of {', '.join(possible)}."
    )


async def quantise(source: Path, target: Path, recipe: Quantisation) -> AsyncGenerator[Progress]:
    """Write `target`; closing the iterator ends it, and then or after an error nothing is left of it.

    Raises ModelRefused: for a source that cannot be quantised, for want of room on the disk, and for a crash.
    """
    is_done = False
    arguments = (str(source.absolute()), str(target.absolute()), recipe)
    try:
        async with Child("localllm.inference.engine.quantise", *arguments) as child, aclosing(child.lines()) as lines:
            async for text in lines:
                match _lines.decode(text):
                    case Progress() as progress:
                        if not progress.num_done:
                            _check_room(target, progress.size_bytes)
                        yield progress
                    case _Refusal(reason=reason):
                        raise ModelRefused(reason)
                    case _Done():
                        is_done = True
            if not is_done:
                code, error = await child.end()
                raise ModelRefused(
                    f"{source.name} could not be quantised: the engine {how_it_ended(code)} ({error or 'no reason'})."
                )
    finally:
        if not is_done:
            target.unlink(missing_ok=True)


def _check_room(target: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if size_bytes + SPARE_BYTES > free:
        raise ModelRefused(
            f"The smaller file takes {size(size_bytes)}, but the disk with {target.parent} has "
            f"{size(free)} free, of which {size(SPARE_BYTES)} must stay free. "
            "Delete what you do not need, or choose a smaller type."
        )


# The child.


def _main(source: Path, target: Path, recipe: Quantisation, parent_pid: int) -> None:
    tell = speaker()
    limit_memory()
    try:
        check(read_header(source), recipe)
        _quantise(source, target, recipe, parent_pid, tell)
        tell(_Done())
    except ModelRefused as exc:
        tell(_Refusal(str(exc)))


def _quantise(source: Path, target: Path, recipe: Quantisation, parent_pid: int, tell: Callable[[_Line], None]) -> None:
    # Not at the top: the web process imports this file and must not carry llama.cpp.
    import llama_cpp as llama

    from localllm.inference.engine.worker import die_with_parent

    die_with_parent(parent_pid)
    log = _Log(tell)
    receive = llama.llama_log_callback(log.note)
    llama.llama_log_set(receive, ctypes.c_void_p(0))
    params = llama.llama_model_quantize_default_params()
    params.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{recipe}")
    params.allow_requantize = True  # from Q8_0; `check` has refused all others
    for is_dry in (True, False):  # the first run tells the size that the file will have
        params.dry_run = log.is_dry = is_dry
        if llama.llama_model_quantize(str(source).encode(), str(target).encode(), params):
            is_full = shutil.disk_usage(target.parent).free < SPARE_BYTES
            reason = f"the disk with {target.parent} is full" if is_full else log.last_error
            raise ModelRefused(f"{source.name} could not be quantised: {reason}.")
    with target.open("rb") as file:
        os.fsync(file.fileno())


class _Log:
    """Hears llama.cpp: a line of its log begins with the number of the tensor that comes next."""

    def __init__(self, tell: Callable[[_Line], None]) -> None:
        self.is_dry = True
        self.last_error = "it gave no reason"
        self._tell = tell
        self._size_bytes = 0
        self._num_tensors = 0

    def note(self, level: int, text: bytes, _: Any) -> None:
        line = text.decode("utf-8", "replace")
        if "failed to quantize: " in line:
            self.last_error = line.partition("failed to quantize: ")[2].strip().rstrip(".")
        elif tensor := TENSOR.match(line):
            self._num_tensors = int(tensor[2])
            if not self.is_dry:
                self._tell(Progress(int(tensor[1]) - 1, self._num_tensors, self._size_bytes))
        elif self.is_dry and (found := SIZE.search(line)):
            self._size_bytes = int(float(found[1]) * (1 << 20))
            self._tell(Progress(0, self._num_tensors, self._size_bytes))


if __name__ == "__main__":
    name: Any = sys.argv[3]
    _main(Path(sys.argv[1]), Path(sys.argv[2]), name, int(sys.argv[4]))
