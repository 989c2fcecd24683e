"""python -m tests.mutants: break the starter in 20,000 ways; each must be read or refused, and what is read be tried.

The tests do the same a few hundred times. Seeded: the same mutants each time.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from localllm.inference.engine.gguf import Header, read_header
from localllm.inference.engine.probe import probe
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import ModelRefused
from tests.gguf_files import STARTER

HEAD_OF_STARTER = 1600  # before its vocabulary
SETTINGS = EngineSettings(n_threads=1, num_slots=1)


def mutants(whole: bytes, head: int, times: int) -> Iterator[bytes]:
    """`whole` with one to six flipped bits in its first `head` bytes; one in ten is cut off, too."""
    dice = random.Random(1)
    for _ in range(times):
        broken = bytearray(whole)
        for _ in range(dice.randint(1, 6)):
            broken[dice.randrange(head)] ^= 1 << dice.randrange(8)
        yield bytes(broken[: dice.randrange(len(broken))] if dice.random() < 0.1 else broken)


def judge(path: Path, content: bytes) -> Header | None:
    """What the header check makes of it: a header that can be trusted, or a refusal that can be shown."""
    path.write_bytes(content)
    try:
        header = read_header(path)
    except ModelRefused as refusal:
        assert str(refusal).isprintable()
        return None
    assert 0 < header.context_length <= 1 << 27
    assert header.tensor_bytes <= header.size_bytes
    return header


async def main(times: int, num_probed: int) -> None:
    whole, outcomes = STARTER.read_bytes(), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutant.gguf"
        for number, content in enumerate(mutants(whole, HEAD_OF_STARTER, times), start=1):
            if judge(path, content) is None:
                outcomes["refused by its header"] += 1
            elif outcomes.total() - outcomes["refused by its header"] < num_probed:
                outcomes[await _try(path)] += 1
            else:
                outcomes["read"] += 1
            if number % 1000 == 0:
                print(f"{number:,}: {dict(outcomes)}", flush=True)


async def _try(path: Path) -> str:
    try:
        await probe(path, settings=SETTINGS)
    except ModelRefused as refusal:
        return "crashed in its trial" if "crashed" in str(refusal) else "refused by its trial"
    return "passed its trial"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--times", type=int, default=20_000)
    parser.add_argument("--probe", type=int, default=200, help="of those that are read, try so many (default: 200)")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.times, arguments.probe))
