"""How much graphics memory a model may take. A throw-away process asks llama.cpp; none where there is no such device.

On Apple's machines graphics memory is the machine's memory, and counted as that: llama.cpp may take it as it likes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from localllm.inference.engine.host import PROJECT, child_environment

DEVICE_FILES = ("/dev/nvidiactl", "/dev/kfd")  # NVIDIA, AMD
LIMIT_S = 30.0  # some drivers take seconds to wake


def gpu_bytes(share: float) -> int | None:
    """Free bytes of all GPUs that llama.cpp was built for, less what has to stay free: all but `share` of them.

    None where no GPU has a memory of its own. It takes about a second where there is a GPU. From a thread.
    """
    if not any(map(_exists, DEVICE_FILES)):
        return None
    try:
        done = subprocess.run(
            [sys.executable, "-m", "localllm.inference.engine.devices"],
            env=child_environment(), cwd=PROJECT, capture_output=True, text=True, timeout=LIMIT_S, check=True,
        )  # fmt: skip
        free, total = map(int, done.stdout.split()[-2:])
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0  # a driver that fails here would fail the model too: it is loaded without it
    return max(0, free - int((1 - share) * total))


def _exists(path: str) -> bool:
    return Path(path).exists()


if __name__ == "__main__":
    from localllm.inference.engine.runner import gpu_memory

    print(*gpu_memory())
