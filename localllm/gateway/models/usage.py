"""One row per generation, from any door: who, what model, what it took, and enough to replay it."""

from __future__ import annotations

import struct
import uuid
import zlib
from datetime import datetime, timedelta

import msgspec
from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from django.db import models
from django.urls import reverse

from localllm.gateway.models.prompt_template import PromptTemplate
from localllm.inference.types import Message, ResponseFormat, Usage

LONGEST_GENERATION = timedelta(hours=1)  # what ends later than this after another was hardly its neighbour


class LoggedSchema(models.Model):
    """A schema as it was decoded by, once for all generations that name its digest: so they can be run again."""

    digest = models.CharField(max_length=120, primary_key=True)
    schema = models.TextField()
    grammar = models.TextField()
    examples = models.JSONField(default=list)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.digest

    @staticmethod
    def keep(format: ResponseFormat) -> None:
        """What a digest stands for never changes, so the first one stays."""
        if not LoggedSchema.objects.filter(pk=format.digest).exists():
            kept = LoggedSchema(
                digest=format.digest, schema=format.schema, grammar=format.grammar, examples=list(format.examples)
            )
            LoggedSchema.objects.bulk_create([kept], ignore_conflicts=True)

    @property
    def response_format(self) -> ResponseFormat:
        return ResponseFormat(
            schema=self.schema, digest=self.digest, grammar=self.grammar, examples=tuple(self.examples)
        )


class UsageLogQuerySet(models.QuerySet["UsageLog"]):
    def visible_to(self, user: User | AnonymousUser) -> UsageLogQuerySet:
        """Their own; with the right to view the log, all."""
        if user.has_perm("gateway.view_usagelog"):
            return self.all()
        return self.filter(user_id=user.pk) if user.pk else self.none()

    def usage_of(self, message_id: uuid.UUID, window: int) -> Usage | None:
        """What all generations of a chat message took together: it may have gone on, or been attempted again.

        None where nothing was computed. The prompt, and the time to the first token, are those of the first.
        """
        counts = self.only("prompt_tokens", "completion_tokens", "ttft_ms", "duration_ms")  # not the texts
        rows = list(counts.filter(message_id=message_id, prompt_tokens__gt=0).order_by("created_at"))
        if not rows:
            return None
        return Usage(
            prompt_tokens=rows[0].prompt_tokens,
            completion_tokens=sum(row.completion_tokens for row in rows),
            ttft_s=rows[0].ttft_ms / 1000,
            duration_s=sum(row.duration_ms for row in rows) / 1000,
            window=window,
        )

    def asked_with(self, template: PromptTemplate) -> UsageLogQuerySet:
        """Answers in plain text, from their beginning to their end, that a version of `template` asked for."""
        whole = self.filter(template_version__template=template, finish_reason__in=("stop", "length"))
        of_people = whole.exclude(messages=b"").exclude(source="trial")
        return of_people.exclude(parameters__has_any_keys=["response_format", "prefix", "reasoning"])


class UsageLog(models.Model):
    """Names and hashes stand beside the foreign keys, so that a row outlives what it points to."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    source = models.CharField(
        max_length=16,
        choices=[("chat", "chat"), ("api", "API"), ("schemas", "schemas"), ("batch", "batch"), ("trial", "trial")],
    )
    user = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL)
    api_key = models.ForeignKey("gateway.ApiKey", null=True, on_delete=models.SET_NULL)
    conversation_id = models.UUIDField(null=True, db_index=True)
    message_id = models.UUIDField(null=True, db_index=True)

    model = models.ForeignKey("gateway.LanguageModel", null=True, on_delete=models.SET_NULL)
    model_name = models.CharField(max_length=100)
    model_sha256 = models.CharField(max_length=64)
    schema_version = models.ForeignKey("schemas_app.SchemaVersion", null=True, on_delete=models.SET_NULL)
    template_version = models.ForeignKey("gateway.PromptTemplateVersion", null=True, on_delete=models.SET_NULL)
    template_variables = models.JSONField(default=dict)
    provider = models.CharField(max_length=32)
    engine_build = models.CharField(max_length=64)
    engine_settings = models.JSONField(default=dict)
    machine = models.CharField(max_length=100, blank=True, help_text="The CPU that it was computed on.")

    parameters = models.JSONField(default=dict)
    seed = models.BigIntegerField(null=True)
    messages = models.BinaryField(default=b"", help_text="What was asked and the answer, compressed.")
    prompt_ids = models.BinaryField(default=b"")
    output_ids = models.BinaryField(default=b"")
    prompt_tokens = models.PositiveIntegerField(default=0)
    reused_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    queue_ms = models.PositiveIntegerField(default=0)
    ttft_ms = models.PositiveIntegerField(default=0)
    duration_ms = models.PositiveIntegerField(default=0)
    finish_reason = models.CharField(max_length=16)
    error = models.TextField(blank=True)

    objects = UsageLogQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at",)
        verbose_name = "generation"
        verbose_name_plural = "usage log"

    def __str__(self) -> str:
        return f"{self.model_name}, {self.completion_tokens} tokens, {self.finish_reason}"

    def get_absolute_url(self) -> str:
        return reverse("usage:show", args=[self.pk])

    @property
    def began_at(self) -> datetime:
        return self.created_at - timedelta(milliseconds=self.duration_ms)

    @property
    def is_cut(self) -> bool:
        """It was stopped from outside; the engine would have gone on."""
        return self.finish_reason in ("cancelled", "error")

    @property
    def num_lost(self) -> int:
        """Tokens at its beginning whose ids are not known: written by an engine that died under it."""
        return self.completion_tokens - len(unpack_ids(bytes(self.output_ids)))

    def had_neighbours(self) -> bool:
        """Were other generations of the same model computed in the same batches, at least for a while?"""
        others = UsageLog.objects.filter(
            model_sha256=self.model_sha256,
            created_at__gt=self.began_at,
            created_at__lt=self.created_at + LONGEST_GENERATION,
        )
        rows = others.exclude(pk=self.pk).only("created_at", "duration_ms").iterator()
        return any(other.began_at < self.created_at for other in rows)

    @property
    def dialogue(self) -> tuple[Message, ...]:
        """What was asked, and as the last message the answer."""
        return unpack_messages(bytes(self.messages))

    @property
    def subject(self) -> str:
        """Whoever gets the same version of a template every time."""
        return subject(self.conversation_id, self.api_key_id)

    @property
    def tokens_per_second(self) -> float | None:
        decode_ms = self.duration_ms - self.ttft_ms
        return (self.completion_tokens - 1) / decode_ms * 1000 if decode_ms > 0 and self.completion_tokens > 1 else None


def subject(conversation_id: uuid.UUID | None = None, api_key_id: int | None = None) -> str:
    """What an experiment draws by: the conversation, or else the key; "" when nothing tells two askers apart."""
    if conversation_id is not None:
        return f"conversation:{conversation_id}"
    return "" if api_key_id is None else f"key:{api_key_id}"


def pack_messages(messages: tuple[Message, ...]) -> bytes:
    return zlib.compress(msgspec.json.encode(messages))


def unpack_messages(packed: bytes) -> tuple[Message, ...]:
    return msgspec.json.decode(zlib.decompress(packed), type=tuple[Message, ...]) if packed else ()


def pack_ids(ids: tuple[int, ...]) -> bytes:
    """Token ids as compressed little-endian 32-bit integers."""
    return zlib.compress(struct.pack(f"<{len(ids)}i", *ids))


def unpack_ids(packed: bytes) -> tuple[int, ...]:
    data = zlib.decompress(packed) if packed else b""
    return struct.unpack(f"<{len(data) // 4}i", data)
