"""What the next turn of a conversation will begin with, computed while its reader reads.

That is what the template writes between two turns; of a thinking model it is the whole answer too, because
templates leave out the reasoning before it. It knows one slot; it knows nothing of queues.
"""

from __future__ import annotations

from collections.abc import Callable

from localllm.inference.engine.runner import Interrupted, Runner, Sample
from localllm.inference.engine.scheduler import Slice
from localllm.inference.engine.sequence import Sequence

QUIET_S = 0.25  # without a request, before it begins: a program that asks again at once does not meet it
SLICE = 64  # tokens; those of a slice that is given up are computed anew


def compute_ahead(
    runner: Runner, run: Callable[[list[Slice]], list[Sample | None]], seq: Sequence, is_wanted: Callable[[], bool]
) -> None:
    """Compute the pending tokens of `seq` but for the last, or as many as can be until the engine `is_wanted`."""
    assert seq.slot is not None
    try:
        with runner.interruptible(is_wanted):
            while seq.num_pending > 1:
                count = min(SLICE, seq.num_pending - 1)
                run([Slice(seq, count)])
                seq.num_computed += count
    except Interrupted:
        seq.num_computed = runner.reuse(seq.slot, seq.slot, seq.num_computed)
