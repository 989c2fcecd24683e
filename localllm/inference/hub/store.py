"""Where files lie that are the server's own: finished ones by their hash, unfinished ones beside them.

Knows disks, not the hub.

`<sha256>.gguf`; what people call a file is no business of its path. llama.cpp finds the parts of a split file by
its own pattern of names in one folder, so those lie in a folder `<sha256>` under names of that pattern.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from localllm.inference.amounts import size
from localllm.inference.errors import HubError
from localllm.inference.hub.files import SHA256, HubFile

SPARE_BYTES = 64 << 20  # of the disk, for everything else
HASH_BYTES = 16 << 20  # at once, so that it can be stopped
LOCK_POLL_S = 1.0
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Store:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, file: HubFile, number: int = 0) -> Path:
        """Of one part, finished. The first is the one to load."""
        if len(file.parts) == 1:
            return self.folder / f"{file.sha256}.gguf"
        return self.folder / file.sha256 / f"model-{number + 1:05}-of-{len(file.parts):05}.gguf"

    def num_bytes(self, file: HubFile) -> int:
        """How much of it is here, finished or not."""
        return sum(_size(path) or _size(_unfinished(path)) for path in self._paths(file))

    def make_room(self, file: HubFile) -> None:
        """Raises HubError where the disk does not hold what is missing."""
        try:
            self.path(file).parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise disk_error(exc, self.folder) from exc
        self.check_room(file.name, file.size_bytes - self.num_bytes(file))

    def check_room(self, name: str, missing: int) -> None:
        """Raises HubError where the disk does not hold so many more bytes."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as exc:
            raise disk_error(exc, self.folder) from exc
        if missing and missing + SPARE_BYTES > free:
            raise HubError(
                f"{name} needs {size(missing)}, but {self.folder} has {size(free)} free, of which "
                f"{size(SPARE_BYTES)} must stay free. Delete what you do not need, or choose a larger disk by "
                "LOCALLLM_HOME.",
                permanent=True,
            )

    def discard(self, file: HubFile) -> None:
        """Remove all of it, finished or not."""
        for path in self._paths(file):
            path.unlink(missing_ok=True)
            _delete_unfinished(path)
        folder = self.path(file).parent
        if folder != self.folder and folder.is_dir():
            folder.rmdir()

    def adopt(self, path: Path, sha256: str) -> Path:
        """Put a whole file of the folder in its place, which is returned. The same file is kept once.

        It may have been put there before. Raises OSError.
        """
        place = self.folder / f"{sha256}.gguf"
        if place.exists():
            path.unlink(missing_ok=True)
            return place
        with path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(path, place)
        _sync(self.folder)
        return place

    def remove(self, path: Path) -> None:
        """Delete a finished file with all its parts. What lies elsewhere, or is not named by a hash, stays."""
        if path.parent == self.folder and SHA256.fullmatch(path.stem):
            path.unlink(missing_ok=True)
        elif path.parent.parent == self.folder and SHA256.fullmatch(path.parent.name):
            shutil.rmtree(path.parent, ignore_errors=True)

    @asynccontextmanager
    async def alone(self) -> AsyncGenerator[None]:
        """Wait until no other process downloads into it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "download.lock").open("w") as lock:
            while not _try_lock(lock.fileno()):
                await asyncio.sleep(LOCK_POLL_S)
            yield

    def _paths(self, file: HubFile) -> Iterable[Path]:
        return (self.path(file, number) for number in range(len(file.parts)))


class Unfinished:
    """The bytes of one part so far, their hash, and the ETag they came under."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(_unfinished(path), "a+b", buffering=0)  # noqa: SIM115  closed by `close`
        self.size = os.fstat(self._file.fileno()).st_size
        self.etag = _read(_etag_of(path))
        self._digest = hashlib.sha256()
        self._num_hashed = 0

    @property
    def is_hashed(self) -> bool:
        return self._num_hashed >= self.size

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def hash_more(self) -> None:
        """Go on with the bytes that were here at the start."""
        data = os.pread(self._file.fileno(), min(HASH_BYTES, self.size - self._num_hashed), self._num_hashed)
        if not data:
            raise OSError(errno.EIO, "It became shorter while it was read")
        self._digest.update(data)
        self._num_hashed += len(data)

    def begin(self, etag: str) -> None:
        """Forget all bytes: others follow, under this ETag."""
        self._file.truncate(0)
        self.size = self._num_hashed = 0
        self._digest = hashlib.sha256()
        self.etag = etag
        _etag_of(self._path).write_text(etag)

    def append(self, block: bytes) -> None:
        written = 0
        while written < len(block):  # a disk that fills takes a part and refuses the rest
            num_bytes = self._file.write(memoryview(block)[written:]) or 0
            self._digest.update(memoryview(block)[written : written + num_bytes])
            written += num_bytes
            self.size += num_bytes
            self._num_hashed += num_bytes

    def finish(self) -> None:
        """On the disk for good, then under its name at once."""
        os.fsync(self._file.fileno())
        os.replace(_unfinished(self._path), self._path)
        _etag_of(self._path).unlink(missing_ok=True)
        _sync(self._path.parent)

    def delete(self) -> None:
        _delete_unfinished(self._path)

    def close(self) -> None:
        self._file.close()


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def disk_error(exc: OSError, path: Path) -> HubError:
    if exc.errno in FULL:
        return HubError(
            f"The disk with {path} is full. What came so far is kept: delete what you do not need, then resume.",
            permanent=True,
        )
    return HubError(f"{path} cannot be written: {exc.strerror}. Check the disk, then resume.", permanent=True)


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _etag_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.etag")


def _delete_unfinished(path: Path) -> None:
    _unfinished(path).unlink(missing_ok=True)
    _etag_of(path).unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
