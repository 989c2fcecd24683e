"""Tries a model file in a throw-away process before it may serve: header, load, decode, chat template.

The parent half (`probe`) knows processes and limits, and never loads llama.cpp; the child half, started as
`python -m localllm.inference.engine.probe PATH SETTINGS`, may crash, hang or be killed, and says what it is
about to do before it does it, one JSON object a line.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from localllm.inference.engine.chat_template import ChatTemplate
from localllm.inference.engine.child import Child, how_it_ended, limit_memory, lower, speaker
from localllm.inference.engine.gguf import Header, read_header
from localllm.inference.engine.scheduler import Slice
from localllm.inference.engine.sequence import Sequence
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import InferenceError, ModelRefused, ProviderError
from localllm.inference.model_file import longest_read_s
from localllm.inference.types import Message, ModelInfo, SamplingParams

if TYPE_CHECKING:
    from localllm.inference.engine.runner import Runner

FIRST_LIMIT_S = 60.0  # to load and decode; a large file gets the time to be read, too
NUM_DECODED = 8
TEMPLATE_CPU_S = 2  # for all fixed conversations together; a sane template takes milliseconds
TEMPLATE_LIMIT_S = 15.0  # the same on the clock of a busy machine
TEMPLATE_MEMORY = 256 << 20

StageName = Literal["start", "header", "load", "decode", "template"]
_DOING: dict[StageName, str] = {
    "start": "starting",
    "header": "reading its header",
    "load": "loading it",
    "decode": "computing its first tokens",
    "template": "rendering its chat template",
}


class ProbeReport(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a usable file turned out to be."""

    header: Header
    window: int  # tokens of one conversation, with the settings it was probed with
    load_s: float
    tokens_per_s: float  # one stream, without the prompt, or one text; a first impression from a few tokens
    peak_memory_bytes: int  # resident, the mapped weights that were touched included


class _Stage(msgspec.Struct, frozen=True, tag=True):
    name: StageName


class _Refusal(msgspec.Struct, frozen=True, tag=True):
    reason: str


_Line = _Stage | _Refusal | ProbeReport
_lines: msgspec.json.Decoder[_Line] = msgspec.json.Decoder(_Line)


# The parent.


async def probe(path: Path, *, settings: EngineSettings) -> ProbeReport:
    """Load the file and decode with it in a child process; raises ModelRefused with the reason.

    The child ends with this call, also when it is cancelled, and with this thread.
    """
    arguments = (str(path.absolute()), msgspec.json.encode(settings).decode())
    async with Child("localllm.inference.engine.probe", *arguments) as child:
        return await _Trial(child, path).report()


class _Trial:
    """Listens to the child and puts into words how it ended."""

    def __init__(self, child: Child, path: Path) -> None:
        self._child = child
        self._path = path
        self._stage: StageName = "start"

    async def report(self) -> ProbeReport:
        limit_s = FIRST_LIMIT_S + longest_read_s(self._path)
        try:
            async with asyncio.timeout(limit_s) as timeout:
                match await self._last_line(timeout):
                    case ProbeReport() as report:
                        return report
                    case _Refusal(reason=reason):
                        raise ModelRefused(reason)
                code, error = await self._child.end()
        except TimeoutError:
            raise self._refused("did not end in time") from None
        raise self._refused(_how_it_ended(code), error)

    async def _last_line(self, timeout: asyncio.Timeout) -> ProbeReport | _Refusal | None:
        async with aclosing(self._child.lines()) as lines:
            async for text in lines:
                with contextlib.suppress(msgspec.DecodeError):  # half a line
                    line = _lines.decode(text)
                    if not isinstance(line, _Stage):
                        return line
                    self._stage = line.name
                    if line.name == "template":
                        timeout.reschedule(asyncio.get_running_loop().time() + TEMPLATE_LIMIT_S)
        return None

    def _refused(self, how: str, why: str = "") -> ModelRefused:
        reason = f" ({why})" if why else ""
        way_out = "Choose another file of this model."
        if self._stage == "template":
            return ModelRefused(
                f"The chat template of {self._path.name} cannot be used: rendering a short conversation "
                f"{how}{reason}. {way_out}"
            )
        return ModelRefused(
            f"{self._path.name} cannot be used: the engine {how} while {_DOING[self._stage]}{reason}. "
            f"{way_out} If good files fail likewise, the engine was built for another machine: rebuild it."
        )


def _how_it_ended(code: int) -> str:
    if code == -signal.SIGXCPU:
        return f"took over {TEMPLATE_CPU_S} s of computing and was stopped"
    return how_it_ended(code)


# The child.

_LONG = "The quick brown fox jumps over the lazy dog; 12 < 13 & {{ braces }}.\n" * 1000
_CONVERSATIONS = (
    (Message("user", "Hello."),),
    (Message("system", "Answer briefly."), Message("user", "Hello.")),
    (Message("user", "Hello."), Message("assistant", "Hi."), Message("user", "How are you?")),
    (Message("system", "Answer briefly."), Message("user", _LONG)),
    (*(Message("user", "More?"), Message("assistant", "Yes.")) * 50, Message("user", "And more?")),
)


def _main(path: Path, settings: EngineSettings, parent_pid: int) -> None:
    tell = speaker()
    limit_memory()
    try:
        tell(_examine(path, settings, parent_pid, tell))
    except InferenceError as exc:
        tell(_Refusal(str(exc)))


def _examine(path: Path, settings: EngineSettings, parent_pid: int, tell: Callable[[_Stage], None]) -> ProbeReport:
    tell(_Stage("header"))
    header = read_header(path)
    tell(_Stage("start"))
    # Not at the top: the web process imports this file and must not carry llama.cpp.
    from localllm.inference.engine.runner import Runner
    from localllm.inference.engine.worker import die_with_parent

    die_with_parent(parent_pid)
    tell(_Stage("load"))
    started = time.monotonic()
    runner = Runner(path, settings)
    load_s = time.monotonic() - started
    tell(_Stage("decode"))
    info = runner.info
    if info.is_embedding:
        tokens_per_s = _embed(runner, path)
    else:
        tokens_per_s = _decode(runner, path)
        tell(_Stage("template"))
        _limit_template()
        _render(info)
    return ProbeReport(
        header=header,
        window=info.window,
        load_s=load_s,
        tokens_per_s=tokens_per_s,
        peak_memory_bytes=_peak_memory(),
    )


def _decode(runner: Runner, path: Path) -> float:
    """Compute a short prompt and a few tokens; tokens per second after the first."""
    params = SamplingParams(temperature=0)
    tokens = runner.tokenize("Hello, how are you?", special=False)
    if not tokens:
        raise ModelRefused(f"{path.name} cannot be used: its vocabulary cannot spell a plain sentence.")
    seq = Sequence(tokens, params, 0, NUM_DECODED, emit=lambda event: None, slot=0)
    seq.sampler = runner.sampler(params, 0, tokens)
    started = 0.0
    for _ in range(NUM_DECODED):
        (sample,) = runner.run([Slice(seq, seq.num_pending)])
        started = started or time.monotonic()
        if sample is None or math.isnan(runner.logits(-1).max()):
            raise ModelRefused(f"{path.name} cannot be used: its weights compute to no number. Download it again.")
        seq.num_computed = len(seq.tokens)
        seq.tokens += sample.tokens
    return (NUM_DECODED - 1) / (time.monotonic() - started)


def _embed(runner: Runner, path: Path) -> float:
    """Make vectors of two texts of different lengths; tokens per second of the second time."""
    texts = [runner.tokenize(text, special=False, is_whole=True) for text in ("Hello.", "Hello, how are you?")]
    texts = [text for text in texts if 0 < len(text) <= runner.window]
    if not texts:
        raise ModelRefused(f"{path.name} cannot be used: its vocabulary cannot spell a plain sentence.")
    try:
        runner.embed(texts)
        started = time.monotonic()
        runner.embed(texts[-1:])
    except ProviderError as exc:
        raise ModelRefused(f"{path.name} cannot be used: {exc}") from exc
    return len(texts[-1]) / (time.monotonic() - started)


def _render(info: ModelInfo) -> None:
    template = ChatTemplate(info.chat_template, bos=info.bos, eos=info.eos, special_tokens=info.special_tokens)
    for messages in _CONVERSATIONS:
        text = template.render(messages).text
        if messages[-1].content.strip() not in text:
            raise ModelRefused(
                "The chat template of this model loses what the user wrote. Choose another file of this model."
            )


def _limit_template() -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    lower(resource.RLIMIT_CPU, math.ceil(usage.ru_utime + usage.ru_stime) + TEMPLATE_CPU_S)
    if sys.platform == "linux":
        num_pages = int(Path("/proc/self/statm").read_text().split()[5])
        lower(resource.RLIMIT_DATA, num_pages * os.sysconf("SC_PAGE_SIZE") + TEMPLATE_MEMORY)


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    _main(Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=EngineSettings), int(sys.argv[3]))
