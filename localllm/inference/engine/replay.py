"""Runs a logged generation again in a throw-away process: cold cache, alone in its batch, its own token ids.

The parent half (`replay`, `spelled`) knows processes, and never loads llama.cpp; the child half, started as
`python -m localllm.inference.engine.replay PARENT_PID`, is told what to do on stdin and answers on stdout, one
JSON object a line. Knows no rows: what may be missing, and what a difference means, others know.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from localllm.inference.engine.chat_template import ChatTemplate
from localllm.inference.engine.child import Child, how_it_ended, limit_memory, speaker
from localllm.inference.engine.scheduler import Slice
from localllm.inference.engine.sequence import Sequence
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import InferenceError, ProviderError
from localllm.inference.types import ChatRequest, Chunk, Event, SamplingParams

if TYPE_CHECKING:
    from localllm.inference.engine.runner import Runner

TELL_EVERY_S = 0.5
BEFORE, AFTER = 60, 40  # tokens shown around a difference
NICENESS = 10  # chats go first


class Recording(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A generation as it was logged. The messages of `request` are not looked at: `prompt_ids` say it all.

    `is_cut`: it was stopped from outside, so what would have followed is no difference.
    """

    path: str
    settings: EngineSettings
    request: ChatRequest
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    is_cut: bool = False


class Spelling(msgspec.Struct, frozen=True, tag=True):
    """Asks for the texts of token ids."""

    path: str
    texts: tuple[tuple[int, ...], ...]


class Spelled(msgspec.Struct, frozen=True, tag=True):
    texts: tuple[str, ...]


class Progress(msgspec.Struct, frozen=True, tag=True):
    """So many tokens are generated again."""

    num_tokens: int


class Choice(msgspec.Struct, frozen=True):
    """One token, and how probable it was (0 to 1) before temperature, filters and schema."""

    id: int
    text: str
    probability: float

    @property
    def label(self) -> str:
        """Its text, with blanks and line breaks that can be seen."""
        return self.text.translate({ord(" "): "␣", ord("\n"): "⏎", ord("\t"): "⇥"}) or f"token {self.id}"

    @property
    def percent(self) -> str:
        return "under 0.01 %" if self.probability < 1e-4 else f"{self.probability:.2%}".replace("%", " %")


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Where two answers part: after `at` equal tokens. A choice is None where that answer has ended there."""

    at: int
    before: str
    logged: Choice | None
    replayed: Choice | None
    logged_after: str
    replayed_after: str


class Replayed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The end of a replay: `num_tokens` are equal to those logged, all of them unless there is a difference."""

    num_tokens: int
    build: str
    difference: Difference | None = None


class _Refusal(msgspec.Struct, frozen=True, tag=True):
    reason: str


_Line = Progress | Replayed | Spelled | _Refusal
_lines: msgspec.json.Decoder[_Line] = msgspec.json.Decoder(_Line)
_orders: msgspec.json.Decoder[Recording | Spelling] = msgspec.json.Decoder(Recording | Spelling)


# The parent.


async def replay(recording: Recording) -> AsyncGenerator[Progress | Replayed]:
    """Run it again; the last item is the result. Close the iterator to stop. Raises InferenceError."""
    async with aclosing(_child(recording)) as lines:
        async for line in lines:
            assert isinstance(line, Progress | Replayed)
            yield line


async def spelled(path: Path, *texts: tuple[int, ...]) -> tuple[str, ...]:
    """What these token ids of the model stand for. Raises InferenceError."""
    async with aclosing(_child(Spelling(str(path), texts))) as lines:
        async for line in lines:
            assert isinstance(line, Spelled)
            return line.texts
    raise AssertionError("A child ends with an answer or an error.")


async def _child(order: Recording | Spelling) -> AsyncGenerator[_Line]:
    """What a child says, up to its result. The child ends with the iterator, and with this thread."""
    async with (
        Child("localllm.inference.engine.replay", order=msgspec.json.encode(order)) as child,
        aclosing(child.lines()) as lines,
    ):
        async for text in lines:
            line = _lines.decode(text)
            if isinstance(line, _Refusal):
                raise ProviderError(line.reason, permanent=True)
            yield line
            if not isinstance(line, Progress):
                return
        code, error = await child.end()
        reason = f" ({error})" if error else ""
        raise ProviderError(f"The engine {how_it_ended(code)} before the result{reason}. Try again, or unload a model.")


# The child.

_Tell = Callable[[_Line], None]


def _main(parent_pid: int) -> None:
    tell = speaker()
    # Not at the top: the web process imports this file and must not carry llama.cpp.
    from localllm.inference.engine.runner import Runner, spell
    from localllm.inference.engine.worker import die_with_parent

    die_with_parent(parent_pid)
    limit_memory()
    os.nice(NICENESS)
    order = _orders.decode(sys.stdin.buffer.read())
    try:
        if isinstance(order, Spelling):
            tell(Spelled(spell(Path(order.path), *order.texts)))
        else:
            tell(_Replay(order, Runner(Path(order.path), order.settings), tell).run())
    except InferenceError as exc:
        tell(_Refusal(str(exc)))


class _Replay:
    """One sequence through the engine, compared token by token as it comes."""

    def __init__(self, recording: Recording, runner: Runner, tell: _Tell) -> None:
        self._recording = recording
        self._runner = runner
        self._tell = tell
        self._output: list[int] = []
        self._num_equal = 0
        self._told_at = time.monotonic()
        self._error: ProviderError | None = None
        self._sequence = self._make_sequence()

    def _make_sequence(self) -> Sequence:
        from localllm.inference.engine.answer_format import AnswerFormat

        runner, request, prompt_ids = self._runner, self._recording.request, self._recording.prompt_ids
        tags = ChatTemplate(runner.info.chat_template).tags
        format = AnswerFormat(runner, tags)
        opens_reasoning = tags is not None and tags.is_open(runner.spell(prompt_ids[-AFTER:]))
        room = runner.window - len(prompt_ids)
        max_tokens = min(request.params.max_tokens or room, room)
        return Sequence(
            tokens=list(prompt_ids),
            params=request.params,
            seed=request.params.seed or 0,
            max_tokens=max_tokens,
            emit=self._note,
            constraint=format.constraint(request, max_tokens, opens_reasoning=opens_reasoning),
            parser=format.parser(request, opens_reasoning=opens_reasoning),
        )

    def run(self) -> Replayed:
        from localllm.inference.engine.engine import Engine

        engine = Engine(self._runner, max_batch_tokens=self._recording.settings.n_batch, max_waiting=1)
        engine.warm_up()
        engine.submit(self._sequence)
        engine.run_until_idle()
        if self._error:
            raise self._error
        return Replayed(num_tokens=self._num_equal, build=self._runner.info.build, difference=self._difference())

    def _note(self, event: Event | ProviderError) -> None:
        if isinstance(event, ProviderError):
            self._error = event
        if not isinstance(event, Chunk):
            return
        for token in event.token_ids:
            at = len(self._output)
            if at == self._num_equal and self._recording.output_ids[at : at + 1] == (token,):
                self._num_equal += 1
            self._output.append(token)
        if self._has_enough():
            self._sequence.cancelled = True
        if time.monotonic() - self._told_at >= TELL_EVERY_S:
            self._tell(Progress(len(self._output)))
            self._told_at = time.monotonic()

    def _has_enough(self) -> bool:
        """All that was logged of an answer that was cut, or enough to show after the first difference."""
        num_logged = len(self._recording.output_ids)
        if self._recording.is_cut and len(self._output) >= num_logged:
            return True
        return len(self._output) > self._num_equal + AFTER

    def _difference(self) -> Difference | None:
        logged, replayed, at = self._recording.output_ids, tuple(self._output), self._num_equal
        if at == len(logged) and (at == len(replayed) or self._recording.is_cut):
            return None
        probabilities = self._probabilities(logged[:at])
        spell = self._runner.spell

        def choice(output: tuple[int, ...]) -> Choice | None:
            if at >= len(output):
                return None
            token = output[at]
            return Choice(token, spell((token,)), float(probabilities[token]) if token < len(probabilities) else 0.0)

        return Difference(
            at=at,
            before=spell((*self._recording.prompt_ids, *logged[:at])[-BEFORE:]),
            logged=choice(logged),
            replayed=choice(replayed),
            logged_after=spell(logged[at + 1 : at + 1 + AFTER]),
            replayed_after=spell(replayed[at + 1 : at + 1 + AFTER]),
        )

    def _probabilities(self, output: tuple[int, ...]) -> npt.NDArray[np.float64]:
        """Of every token of the vocabulary, after so much of the answer."""
        params = SamplingParams(temperature=0)
        seq = Sequence([*self._recording.prompt_ids, *output], params, 0, 1, emit=lambda event: None, slot=0)
        seq.sampler = self._runner.sampler(params, 0, [])
        self._runner.clear()
        while seq.num_pending:
            piece = Slice(seq, min(seq.num_pending, self._recording.settings.n_batch))
            self._runner.run([piece])
            seq.num_computed += piece.count
        return self._runner.probabilities(-1)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
