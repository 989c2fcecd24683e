"""A GGUF file that a row stands for: where it lies, and by what it is known again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Self

from django.db import models

from localllm.inference.engine.gguf import SPLIT

HASH_CHUNK_BYTES = 1 << 20


class ModelFile(models.Model):
    path = models.CharField(max_length=1000, unique=True)
    sha256 = models.CharField(max_length=64, editable=False)
    size_bytes = models.BigIntegerField(editable=False)
    file_mtime_ns = models.BigIntegerField(editable=False)
    file_inode = models.BigIntegerField(default=0, editable=False)
    description = models.CharField(max_length=200, blank=True, editable=False, help_text="As llama.cpp names it.")
    repository = models.CharField(
        max_length=200, blank=True, editable=False, help_text="Of the hub, where it came from."
    )

    class Meta:
        abstract = True

    @classmethod
    def field_names(cls) -> list[str]:
        return [field.name for field in ModelFile._meta.get_fields()]

    def become(self, file: ModelFile) -> Self:
        """Stand for that file instead; not saved yet."""
        for name in self.field_names():
            setattr(self, name, getattr(file, name))
        return self

    @property
    def has_changed_file(self) -> bool:
        """Is another file there than the one that was noted? One that is gone is no other one."""
        try:
            return self._identity() != (self.size_bytes, self.file_mtime_ns, self.file_inode)
        except OSError:
            return False

    def check_file(self) -> bool:
        """Read the whole file: is it still the one that was noted? Raises OSError when it cannot be read."""
        return sha256_of(Path(self.path)) == self.sha256

    def remember_file(self) -> None:
        """Note size, time, inode and hash of the file; the hash is computed only when the others changed."""
        identity = self._identity()
        if not self.sha256 or identity != (self.size_bytes, self.file_mtime_ns, self.file_inode):
            self.sha256 = sha256_of(Path(self.path))
            self.size_bytes, self.file_mtime_ns, self.file_inode = identity

    def _identity(self) -> tuple[int, int, int]:
        stat = Path(self.path).stat()
        return stat.st_size, stat.st_mtime_ns, stat.st_ino


def sha256_of(path: Path) -> str:
    """Of the content; for a split file, of its parts' hashes, as the hub's files are known."""
    digests = [_digest(part) for part in parts_of(path)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def parts_of(path: Path) -> list[Path]:
    """The file itself, or all parts of the split file that it begins."""
    split = SPLIT.fullmatch(path.name)
    if split is None:
        return [path]
    count = int(split["count"])
    return [path.with_name(f"{split['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
