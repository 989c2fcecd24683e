"""A model that may be asked: a GGUF file on this machine, how it is loaded, and its sampling defaults."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from django.db import models, transaction
from django.db.models import Q

from localllm.inference.engine.gguf import split_parts
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.providers.llamacpp import LocalModel
from localllm.inference.types import Message


class LanguageModelQuerySet(models.QuerySet["LanguageModel"]):
    def named(self, name: str) -> LanguageModel:
        """The model of that name; `default` is the default model. Raises LanguageModel.DoesNotExist."""
        return self.default() if name == "default" else self.get(name=name)

    def default(self) -> LanguageModel:
        return self.get(is_default=True)

    def register(self, path: Path, *, name: str = "", make_default: bool = False, **defaults: Any) -> LanguageModel:
        """Make or update the row of a file that has passed the probe; the file stays where it is."""
        path = path.resolve()
        row = self.filter(path=str(path)).first() or self.model(path=str(path), **defaults)
        row.remember_file()  # hashing takes long: outside the transaction, which would lock everybody out
        with transaction.atomic():
            row.name = row.name or self._free_name(name or path.stem)
            row.save()
            if make_default or not self.filter(is_default=True).exists():
                row.make_default()
        return row

    def _free_name(self, wanted: str) -> str:
        base = re.sub(r"[^a-z0-9._-]+", "-", wanted.lower()).strip("-.") or "model"
        base = "model" if base == "default" else base[:90]
        name, number = base, 2
        while self.filter(name=name).exists():
            name, number = f"{base}-{number}", number + 1
        return name


class LanguageModel(models.Model):
    name = models.SlugField(
        max_length=100,
        unique=True,
        help_text="What API clients call it. “default” always means the default model.",
    )
    title = models.CharField(max_length=200, blank=True, help_text="What people see; the name if empty.")
    path = models.CharField(max_length=1000, unique=True)
    sha256 = models.CharField(max_length=64, editable=False)
    size_bytes = models.BigIntegerField(editable=False)
    file_mtime_ns = models.BigIntegerField(editable=False)
    file_inode = models.BigIntegerField(default=0, editable=False)
    repository = models.CharField(
        max_length=200, blank=True, editable=False, help_text="Of the hub, where it came from."
    )
    licence = models.CharField(max_length=200, blank=True)
    is_embedding = models.BooleanField(default=False, editable=False, help_text="Makes vectors of texts, no answers.")
    is_default = models.BooleanField(default=False, editable=False)
    is_starter = models.BooleanField(default=False, editable=False)
    is_enabled = models.BooleanField(default=True, help_text="Shown in pickers and answered by the API.")
    description = models.CharField(max_length=200, blank=True, editable=False, help_text="As llama.cpp names it.")
    created_at = models.DateTimeField(auto_now_add=True)

    # How it is loaded
    n_ctx = models.PositiveIntegerField("context window", default=4096, help_text="Tokens of one conversation.")
    num_slots = models.PositiveSmallIntegerField("slots", default=4, help_text="Conversations decoded at once.")
    n_threads = models.PositiveSmallIntegerField("threads", default=0, help_text="0: all available CPUs.")
    n_batch = models.PositiveIntegerField("batch size", default=512)
    n_gpu_layers = models.IntegerField("GPU layers", default=-1, help_text="-1: as many as fit.")
    use_mmap = models.BooleanField("memory-map the file", default=True)
    use_mlock = models.BooleanField("lock in memory", default=False)
    numa = models.BooleanField("NUMA aware", default=False)
    flash_attention = models.CharField(
        max_length=4, default="auto", choices=[("auto", "auto"), ("on", "on"), ("off", "off")]
    )
    kv_type = models.CharField(
        "KV cache type",
        max_length=5,
        default="f16",
        choices=[("f16", "f16"), ("q8_0", "q8_0"), ("q4_0", "q4_0")],
    )
    rope_scaling = models.CharField(
        max_length=6, default="none", choices=[("none", "none"), ("linear", "linear"), ("yarn", "YaRN")]
    )
    rope_scale = models.FloatField(default=1.0, help_text="How many times the trained window is stretched.")
    max_waiting = models.PositiveIntegerField("queue", default=64, help_text="Requests that may wait for a slot.")
    keep_alive_s = models.PositiveIntegerField(
        "keep alive", default=0, help_text="Seconds without a request until it is unloaded. 0: it stays."
    )
    is_preloaded = models.BooleanField("load at start", default=False)

    # Defaults of its conversations
    system_prompt = models.TextField(blank=True)
    temperature = models.FloatField(default=0.7)
    top_p = models.FloatField(default=0.95)
    top_k = models.PositiveIntegerField(default=40)
    min_p = models.FloatField(default=0.05)
    max_tokens = models.PositiveIntegerField(null=True, blank=True, help_text="Empty: what the window still holds.")
    stop = models.JSONField("stop strings", default=list, blank=True)

    # What the last load showed; empty before the first one
    predicted_bytes = models.BigIntegerField(null=True, editable=False)
    measured_bytes = models.BigIntegerField(null=True, editable=False, help_text="Peak, resident, after a full batch.")
    load_s = models.FloatField(null=True, editable=False)
    prefill_per_s = models.FloatField(null=True, editable=False, help_text="Tokens a second.")
    decode_per_s = models.FloatField(null=True, editable=False, help_text="Tokens a second, one conversation.")
    measured_at = models.DateTimeField(null=True, editable=False)

    objects = LanguageModelQuerySet.as_manager()

    class Meta:
        ordering = ("name",)
        constraints = (
            models.UniqueConstraint(fields=["is_default"], condition=Q(is_default=True), name="one_default_model"),
        )

    def __str__(self) -> str:
        return self.title or self.name

    @property
    def engine_settings(self) -> EngineSettings:
        return EngineSettings(**{name: getattr(self, name) for name in EngineSettings.__struct_fields__})

    def local(self) -> LocalModel:
        """What the embedded provider needs to serve it."""
        return LocalModel(Path(self.path), self.engine_settings, self.sha256)

    def with_system_prompt(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The conversation; its own system prompt speaks where it brings none."""
        if not self.system_prompt or any(message.role == "system" for message in messages):
            return messages
        return (Message("system", self.system_prompt), *messages)

    def make_default(self) -> None:
        with transaction.atomic():
            LanguageModel.objects.filter(is_default=True).update(is_default=False)
            self.is_default = True
            self.save(update_fields=["is_default"])

    def remember_file(self) -> None:
        """Note size, time and hash of the file; the hash is computed only when the others changed."""
        stat = Path(self.path).stat()
        if (stat.st_size, stat.st_mtime_ns) != (self.size_bytes, self.file_mtime_ns) or not self.sha256:
            self.sha256 = content_sha256(Path(self.path))
            self.size_bytes, self.file_mtime_ns = stat.st_size, stat.st_mtime_ns


class FileVersion(models.Model):
    """A file that a model is or was. The model's own fields are a copy of the one that serves."""

    model = models.ForeignKey(LanguageModel, on_delete=models.CASCADE, related_name="files")
    path = models.CharField(max_length=1000, unique=True)
    sha256 = models.CharField(max_length=64)
    size_bytes = models.BigIntegerField()
    description = models.CharField(max_length=200, blank=True)
    repository = models.CharField(max_length=200, blank=True)
    name = models.CharField(max_length=300, help_text="What it was called where it came from.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return self.name


def content_sha256(path: Path) -> str:
    """Of a file; of a split one, of its parts' hashes, as of those that were downloaded (hub/files.py)."""
    hashes = []
    for part in split_parts(path):
        with part.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
