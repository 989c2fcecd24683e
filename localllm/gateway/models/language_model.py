"""A model that may be asked: a GGUF file on this machine, how it is loaded, and its sampling defaults."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
from django.contrib.auth.models import User
from django.core.validators import RegexValidator
from django.db import models, transaction
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone

from localllm.gateway.models.model_file import ModelFile
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import InferenceError, ProviderError
from localllm.inference.providers.llamacpp import LocalModel, Measurements
from localllm.inference.types import Message

# Mistral's models are of the architecture “llama”: only what they are called tells them.
MISTRALS = ("mistral", "mixtral", "ministral", "codestral")

NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*\Z"  # one segment of an address; a slug has no dots, which most models have


class ModelError(InferenceError):
    """The model cannot do that; `str(exc)` is for the user."""


class LanguageModelQuerySet(models.QuerySet["LanguageModel"]):
    def named(self, name: str) -> LanguageModel:
        """The model of that name; `default` is the default model. Raises LanguageModel.DoesNotExist."""
        return self.default() if name == "default" else self.get(name=name)

    def default(self) -> LanguageModel:
        return self.get(is_default=True)

    def answering(self) -> LanguageModelQuerySet:
        """Those that may be asked in a chat."""
        return self.filter(is_enabled=True, is_embedding=False)

    def by_hash(self, hashes: Iterable[str]) -> dict[str, LanguageModel]:
        """Those of these files that are here already."""
        return {model.sha256: model for model in self.filter(sha256__in=list(hashes))}

    def register(
        self,
        path: Path,
        *,
        name: str = "",
        file_name: str = "",
        make_default: bool = False,
        is_embedding: bool = False,
        **defaults: Any,
    ) -> LanguageModel:
        """Make or update the row of a file that has passed the probe; the file stays where it is.

        `file_name` is what it was called where it came from. A file that is known already stays with its model.
        """
        file = FileVersion.objects.filter(path=str(path.resolve())).first()
        if file is None:
            known = {field: defaults[field] for field in ModelFile.field_names() if field in defaults}
            file = FileVersion(path=str(path.resolve()), name=file_name or path.name, **known)
        file.remember_file()  # hashing takes long: outside the transaction, which would lock everybody out
        with transaction.atomic():
            row = self.filter(files__path=file.path).first() or self.model(path=file.path, **defaults)
            if row.path == file.path:  # else an older version that was registered again
                row.become(file)
                row.is_embedding = is_embedding
            row.name = row.name or self._free_name(name or path.stem)
            row.save()
            version = FileVersion.objects.filter(path=file.path).first() or file
            version.become(file).model = row
            version.save()
            if make_default or not (row.is_embedding or self.filter(is_default=True).exists()):
                row.make_default()
        return row

    def _free_name(self, wanted: str) -> str:
        base = re.sub(r"[^a-z0-9._-]+", "-", wanted.lower()).strip("-.") or "model"
        base = "model" if base == "default" else base[:90]
        name, number = base, 2
        while self.filter(name=name).exists():
            name, number = f"{base}-{number}", number + 1
        return name


class LanguageModel(ModelFile):
    name = models.CharField(
        max_length=100,
        unique=True,
        validators=[RegexValidator(NAME, "Use letters without accents, digits, dots, hyphens and underscores.")],
        help_text="What API clients call it. “default” always means the default model.",
    )
    title = models.CharField(max_length=200, blank=True, help_text="What people see; the name if empty.")
    note = models.CharField(max_length=300, blank=True, help_text="For people: what it is good for.")
    licence = models.CharField(max_length=200, blank=True)
    is_embedding = models.BooleanField(default=False, editable=False, help_text="Makes vectors of texts, no answers.")
    is_default = models.BooleanField(default=False, editable=False)
    is_starter = models.BooleanField(default=False, editable=False)
    is_enabled = models.BooleanField(default=True, help_text="Shown in pickers and answered by the API.")
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
    measured_as = models.CharField(max_length=64, blank=True, editable=False)

    objects = LanguageModelQuerySet.as_manager()

    class Meta:
        ordering = ("name",)
        permissions = (("load_languagemodel", "Can load, unload and choose the default model"),)
        constraints = (
            models.UniqueConstraint(fields=["is_default"], condition=Q(is_default=True), name="one_default_model"),
        )

    def __str__(self) -> str:
        return self.title or self.name

    def get_absolute_url(self) -> str:
        return reverse("models:show", args=[self.name])

    @property
    def engine_settings(self) -> EngineSettings:
        return EngineSettings(**{name: getattr(self, name) for name in EngineSettings.__struct_fields__})

    @property
    def family(self) -> str:
        """Such as `mistral`, `qwen2` or `llama`: models that want to be prompted alike."""
        architecture = re.split(r"[ ,]", self.description.lower(), maxsplit=1)[0]
        if architecture not in ("", "llama") and not architecture.startswith("mistral"):
            return architecture
        names = f"{architecture} {self.name} {self.title} {self.repository} {Path(self.path).name}".lower()
        return "mistral" if any(name in names for name in MISTRALS) else architecture

    def local(self) -> LocalModel:
        """What the embedded provider needs to serve it."""
        return LocalModel(
            Path(self.path),
            self.engine_settings,
            self.sha256,
            name=self.name,
            keep_alive_s=self.keep_alive_s,
            measured_bytes=self.measured_bytes if self.is_measured else None,
        )

    def with_system_prompt(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The conversation; its own system prompt speaks where it brings none."""
        if not self.system_prompt or any(message.role == "system" for message in messages):
            return messages
        return (Message("system", self.system_prompt), *messages)

    def inherited(self) -> dict[str, Any]:
        """What another file of the same model takes over: how it is loaded and asked, licence and origin."""
        names = (
            *EngineSettings.__struct_fields__,
            *("keep_alive_s", "repository", "licence", "system_prompt"),
            *("temperature", "top_p", "top_k", "min_p", "max_tokens", "stop"),
        )
        return {name: getattr(self, name) for name in names}

    def check_answers(self) -> None:
        """Raises ProviderError for a model that may not be asked in a chat."""
        if self.is_embedding:
            raise ProviderError(
                f"{self} makes embeddings of texts and writes no answers. Choose another model.", permanent=True
            )

    def check_may_be_default(self) -> None:
        """Raises ModelError for one that could not answer whoever asks for no model by name."""
        if self.is_embedding:
            raise ModelError(f"{self} makes embeddings, so it cannot answer chats. Choose a model that writes.")
        if not self.is_enabled:
            raise ModelError(f"{self} is disabled. Enable it first.")

    def make_default(self) -> None:
        """Raises ModelError."""
        self.check_may_be_default()
        with transaction.atomic():
            LanguageModel.objects.filter(is_default=True).update(is_default=False)
            self.is_default = True
            self.save_again(["is_default"])

    def save_again(self, fields: Iterable[str]) -> None:
        """Write these fields alone, for what others do meanwhile stays. Raises ModelError where the row is gone."""
        values = {name: getattr(self, name) for name in fields}
        if not LanguageModel.objects.filter(pk=self.pk).update(**values):
            raise ModelError(f"{self} was deleted meanwhile.")

    def save_what_differs(self, before: LanguageModel) -> None:
        """But not whether it is the default: that is decided elsewhere. Raises ModelError where the row is gone."""
        names = {field.name for field in self._meta.concrete_fields} - {"is_default"}
        self.save_again(name for name in names if getattr(self, name) != getattr(before, name))

    @property
    def is_measured(self) -> bool:
        """Are the figures those of this file with these settings?"""
        return self.measured_as == self._fingerprint

    def remember_measurements(self, measured: Measurements) -> None:
        fields = asdict(measured) | {"measured_at": timezone.now(), "measured_as": self._fingerprint}
        LanguageModel.objects.filter(pk=self.pk).update(**fields)
        for name, value in fields.items():
            setattr(self, name, value)

    @property
    def _fingerprint(self) -> str:
        """Of all that makes its worker what it is."""
        return hashlib.sha256(msgspec.json.encode([self.sha256, self.engine_settings])).hexdigest()

    # Files and their versions

    @property
    def current_file(self) -> FileVersion:
        return self.files.get(path=self.path)

    def take_over(self, other: LanguageModel) -> FileVersion:
        """Make the file of `other` a version of this model, which then has all that was the other's.

        Its older versions, its conversations and its usage come along; its name and settings are gone.
        Raises ModelError.
        """
        self.check_may_take(other)
        with transaction.atomic():
            for relation in LanguageModel._meta.related_objects:
                rows = relation.related_model._default_manager.filter(**{relation.field.name: other})
                rows.update(**{relation.field.name: self})
            was_default = other.is_default
            other.delete()
            if was_default:
                self.make_default()
            return self.files.get(path=other.path)

    def check_may_take(self, other: LanguageModel) -> None:
        """Raises ModelError where the file of `other` cannot become a version of this model."""
        if other == self:
            raise ModelError(f"{self} cannot be replaced by itself. Choose another model.")
        for model in (self, other):
            if model.is_starter:
                raise ModelError(f"{model} comes with LocalLLM and keeps its file. Choose another model.")
        if other.is_embedding != self.is_embedding:
            raise ModelError(
                f"{self} {_makes(self)} and {other} {_makes(other)}: whoever uses it would get something else. "
                "Choose a file of the same kind."
            )

    def num_conversations_by_user(self) -> models.QuerySet[Any]:
        """Users with a `num` of conversations that it answers; as the default, of those without a model too."""
        theirs = Q(conversations__model=self)
        if self.is_default:
            theirs |= Q(conversations__model=None)
        users = User.objects.annotate(num=models.Count("conversations", filter=theirs))
        return users.filter(num__gt=0).order_by("-num", "username")

    def check_may_go(self) -> None:
        """Raises ModelError where deleting it would leave nothing that answers, or would not last."""
        if self.is_default:
            raise ModelError(f"{self} is the default model. Make another one the default first.")
        if self.is_starter:
            raise ModelError(f"{self} comes with LocalLLM and would be back at the next start. Disable it instead.")


def _makes(model: LanguageModel) -> str:
    return "makes embeddings" if model.is_embedding else "writes answers"


class FileVersion(ModelFile):
    """A file that a model is or was. The model's own fields are a copy of the one that serves."""

    model = models.ForeignKey(LanguageModel, on_delete=models.CASCADE, related_name="files")
    name = models.CharField(max_length=300, help_text="What it was called where it came from.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return self.name

    @property
    def is_current(self) -> bool:
        return self.path == self.model.path
