"""A file that comes in chunks: its size is the truth about how far it is, and each chunk must begin there."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import BinaryIO

from localllm.inference.hub.store import disk_error


class WrongOffset(Exception):
    """The chunk does not begin where the last one ended: at `num_bytes`."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__(f"The next chunk begins at byte {num_bytes:,}. Go on from there.")
        self.num_bytes = num_bytes


def append(path: Path, offset: int, chunk: bytes) -> int:
    """Its size with the chunk. Raises WrongOffset, and HubError when the disk does not take it: nothing is kept then.

    Locked meanwhile, since two tabs may send the same file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            here = file.seek(0, os.SEEK_END)
            if offset != here:
                raise WrongOffset(here)
            try:
                _write(file, chunk)
            except OSError:
                os.truncate(file.fileno(), here)
                raise
    except OSError as exc:
        raise disk_error(exc, path.parent) from exc
    return here + len(chunk)


def _write(file: BinaryIO, chunk: bytes) -> None:
    written = 0
    while written < len(chunk):  # a disk that fills takes a part and refuses the rest
        written += file.write(memoryview(chunk)[written:]) or 0
