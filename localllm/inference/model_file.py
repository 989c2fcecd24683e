"""A model's file as a whole, with all parts of a split one: how to see that it has changed, its SHA-256, and how
long it may take to be read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from localllm.inference.engine.gguf import parts

CHUNK_BYTES = 1 << 20
MAX_SIGNED = (1 << 63) - 1
SLOWEST_DISK = 20e6  # bytes per second


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when a file is written anew or replaced by another."""

    size_bytes: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Raises OSError, such as for a file that is gone."""
        found = [part.stat() for part in parts(path)]
        return cls(
            size_bytes=sum(each.st_size for each in found),
            mtime_ns=max(each.st_mtime_ns for each in found),
            inode=sum(each.st_ino for each in found) & MAX_SIGNED,
        )


def longest_read_s(path: Path) -> float:
    """What a slow disk takes to read all of it. 0 where it cannot be read: whoever loads it says why."""
    try:
        return Stamp.of(path).size_bytes / SLOWEST_DISK
    except OSError:
        return 0.0


def sha256(path: Path) -> str:
    """Of the content; for a split file, of its parts' hashes, as the store of downloads names it."""
    hashes = [_sha256(part) for part in parts(path)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
