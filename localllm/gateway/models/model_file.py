"""A GGUF file that a row stands for: where it lies, and by what it is known again."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from django.db import models

from localllm.inference import model_file
from localllm.inference.errors import ModelRefused
from localllm.inference.model_file import Stamp


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

    def remember_file(self) -> None:
        """Note size, time, inode and hash of the file; the hash is computed only when one of the others changed."""
        stamp = Stamp.of(Path(self.path))
        if not self._is_as_noted(stamp) or not self.sha256:
            self.sha256 = model_file.sha256(Path(self.path))
        self.size_bytes, self.file_mtime_ns, self.file_inode = stamp.size_bytes, stamp.mtime_ns, stamp.inode

    @property
    def has_changed_file(self) -> bool:
        """Is another file there than the one that was noted? One that is gone is no other one."""
        try:
            return not self._is_as_noted(Stamp.of(Path(self.path)))
        except OSError:
            return False

    def check_file(self) -> None:
        """Read the whole file. Raises ModelRefused when it cannot be read, or is not the one that was noted."""
        try:
            is_sound = model_file.sha256(Path(self.path)) == self.sha256
        except OSError as exc:
            raise ModelRefused(
                f"The file of {self} cannot be read: {exc.strerror}. Put it back, or roll back."
            ) from exc
        if not is_sound:
            raise ModelRefused(
                f"The file of {self} is not the one that was registered: its SHA-256 differs. If you replaced it, "
                "load it again: it is tried out first. If not, it is damaged: roll back, or download it again."
            )

    def _is_as_noted(self, stamp: Stamp) -> bool:
        known = (self.size_bytes, self.file_mtime_ns) == (stamp.size_bytes, stamp.mtime_ns)
        return known and self.file_inode in (0, stamp.inode)  # 0: noted by a version that did not look at it
