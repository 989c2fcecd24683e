"""The worker, noting when it sampled each token: one JSON line in STAMPS for each answer.

Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from typing import Any

from localllm.inference.engine.engine import Engine
from localllm.inference.engine.runner import Runner, Sample
from localllm.inference.engine.scheduler import Slice
from localllm.inference.engine.sequence import Sequence
from localllm.inference.engine.worker import run
from localllm.inference.types import FinishReason
from tests.bench.make_model import BUILD

STAMPS = BUILD / "stamps.jsonl"

sample, finish = Runner._sample, Engine._finish
sampled_at: defaultdict[Sequence, list[float]] = defaultdict(list)


def sample_stamped(self: Runner, piece: Slice, *rest: Any) -> Sample:
    sampled = sample(self, piece, *rest)
    sampled_at[piece.seq].append(time.monotonic())
    return sampled


def finish_stamped(self: Engine, seq: Sequence, reason: FinishReason) -> None:
    finish(self, seq, reason)
    pieces = [self._runner.piece(token).decode() for token in seq.tokens[seq.num_prompt_tokens :]]
    with STAMPS.open("a") as file:
        file.write(json.dumps({"pieces": pieces, "sampled_at": sampled_at.pop(seq, [])}) + "\n")


if __name__ == "__main__":
    Runner._sample, Engine._finish = sample_stamped, finish_stamped  # type: ignore[assignment, method-assign]
    run(int(sys.argv[1]), int(sys.argv[2]))
