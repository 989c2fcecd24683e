"""How fast a loaded model is: one full batch, then a second of decoding, while nobody asks for anything.

It fills the buffers as the largest prompts do, so afterwards the process has taken what it will ever take. It knows
one slot, and leaves tokens in it; it knows nothing of queues.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from localllm.inference.engine.runner import Interrupted, Runner, Sample
from localllm.inference.engine.scheduler import Slice
from localllm.inference.engine.sequence import Sequence
from localllm.inference.errors import ProviderError
from localllm.inference.types import SamplingParams, Speed

QUIET_S = 1.0  # without a request, before the self-test: it should not meet the next question of a conversation
BATCH_LIMIT_S = 30.0  # a model that takes longer for one batch is not measured by it
DECODE_S = 1.0
MIN_DECODED = 8  # tokens that the window must still hold
STRIDE = 7919  # a prime: the tokens come from all over the vocabulary, and so from all experts of a mixture


Run = Callable[[list[Slice]], list[Sample | None]]  # computes one batch


def self_test(runner: Runner, run: Run, *, slot: int, num_tokens: int, is_wanted: Callable[[], bool]) -> Speed | None:
    """Compute a batch of `num_tokens`, or of what the window holds. None as soon as the engine `is_wanted`."""
    count = min(num_tokens, runner.window - MIN_DECODED)
    if count < 1:
        return Speed(0.0, 0.0)
    tokens = [place * STRIDE % runner.vocab_size for place in range(count)]
    seq = Sequence(tokens, SamplingParams(temperature=0), 0, runner.window, emit=lambda event: None, slot=slot)
    seq.sampler = runner.sampler(seq.params, 0, tokens)
    started = time.monotonic()
    try:
        with runner.interruptible(lambda: is_wanted() or time.monotonic() - started > BATCH_LIMIT_S):
            _step(run, seq)
        prefill_per_s = count / (time.monotonic() - started)
        return Speed(prefill_per_s, _decode_per_s(run, seq, runner.window, is_wanted))
    except Interrupted:
        return None if is_wanted() else Speed(0.0, 0.0)
    except ProviderError:  # a batch that llama.cpp cannot compute: those who ask will hear of it
        return Speed(0.0, 0.0)
    finally:
        runner.free_sampler(seq.sampler)


def _decode_per_s(run: Run, seq: Sequence, window: int, is_wanted: Callable[[], bool]) -> float:
    started, before = time.monotonic(), len(seq.tokens)
    while (elapsed_s := time.monotonic() - started) < DECODE_S and len(seq.tokens) < window:
        if is_wanted():
            raise Interrupted
        _step(run, seq)
    return (len(seq.tokens) - before) / elapsed_s


def _step(run: Run, seq: Sequence) -> None:
    (sample,) = run([Slice(seq, seq.num_pending)])
    seq.num_computed = len(seq.tokens)
    seq.tokens += sample.tokens if sample else []
