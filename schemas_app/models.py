"""Schemas and their versions, and how a version asks. Knows rows; compiling and answering are the gateway's."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from django.db import models, transaction
from django.db.models import Max, Q
from django.utils.text import slugify

from localllm.gateway.models import LanguageModel
from localllm.inference.prompt_template import Template
from localllm.inference.types import ChatRequest, Message, SamplingParams
from schemas_app.batches.models import Batch, BatchRow

__all__ = ["Batch", "BatchRow", "Schema", "SchemaVersion", "TryOut"]

INPUT = "input"  # the variable of a prompt template that stands for what the user wrote
MAX_KEPT = 50  # results of trying one schema, for each user
CONTENT = ("text", "prompt_template", "temperature", "max_tokens", "examples")  # what a version says


class SchemaQuerySet(models.QuerySet["Schema"]):
    def visible_to(self, user: User | AnonymousUser) -> SchemaQuerySet:
        """Its own, and those shared with everybody."""
        return self.filter(Q(is_shared=True) | Q(owner_id=user.pk)) if user.pk else self.none()

    def editable_by(self, user: User | AnonymousUser) -> SchemaQuerySet:
        """Its own; with the right to change schemas, all that it sees."""
        visible = self.visible_to(user)
        return visible if user.has_perm("schemas_app.change_schema") else visible.filter(owner_id=user.pk)

    def matching(self, query: str) -> SchemaQuerySet:
        """Those that have every word of `query` in their name, slug or description."""
        found = self
        for word in query.split():
            found = found.filter(Q(name__icontains=word) | Q(slug__icontains=word) | Q(description__icontains=word))
        return found

    def free_slug(self, name: str) -> str:
        base = slugify(name)[:90] or "schema"
        slug, number = base, 2
        while self.filter(slug=slug).exists():
            slug, number = f"{base}-{number}", number + 1
        return slug


class Schema(models.Model):
    """A kind of data that can be asked for. What it says is in its versions; the newest one counts."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.CASCADE, related_name="schemas"
    )
    slug = models.SlugField(max_length=100, unique=True, help_text="What API clients call it.")
    name = models.CharField(max_length=100)
    description = models.TextField(blank=True, help_text="What the data is. The model reads it too.")
    is_shared = models.BooleanField(default=False, help_text="Everybody who can sign in may use it.")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = SchemaQuerySet.as_manager()

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    @property
    def current(self) -> SchemaVersion:
        return self.versions.latest("number")

    def add_version(self, *, author: User | None = None, **fields: Any) -> SchemaVersion:
        """Save a new version; those before it stay as they are."""
        with transaction.atomic():
            last = self.versions.aggregate(last=Max("number"))["last"] or 0
            return self.versions.create(number=last + 1, author=author, **fields)


class SchemaVersion(models.Model):
    """What a schema said at one time. It never changes: logs, chats and jobs point to it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    schema = models.ForeignKey(Schema, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    author = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    text = models.TextField("JSON Schema", help_text="As its author wrote it: the order of properties counts.")
    prompt_template = models.TextField(
        blank=True, help_text="What is asked. {{ input }} stands for what the user wrote; alone if empty."
    )
    temperature = models.FloatField(default=0.3)
    max_tokens = models.PositiveIntegerField(default=2048, help_text="At most; fewer when the window holds fewer.")
    examples = models.JSONField(
        default=list, blank=True, help_text='Shown to the model: [{"input": "…", "output": "… as JSON text"}].'
    )

    class Meta:
        ordering = ("-number",)
        constraints = (models.UniqueConstraint(fields=["schema", "number"], name="one_schema_version_per_number"),)

    def __str__(self) -> str:
        return f"{self.schema} v{self.number}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise TypeError("A version of a schema never changes. Add another with Schema.add_version().")
        super().save(*args, **kwargs)

    @property
    def content(self) -> dict[str, Any]:
        """What it says, as `Schema.add_version` takes it."""
        return {name: getattr(self, name) for name in CONTENT}

    def prompt(self, text: str) -> str:
        """The question: the template around what the user wrote. Raises TemplateError."""
        return Template(self.prompt_template).render({INPUT: text}) if self.prompt_template else text

    def applied_to(self, request: ChatRequest) -> ChatRequest:
        """`request` as this version asks it: prompt template, examples before the question, its sampling.

        The last message of `request` is the user's.
        """
        *before, question = request.messages
        num_system = sum(message.role == "system" for message in before)
        shown: list[Message] = []
        for example in self.examples:
            shown += Message("user", self.prompt(example["input"])), Message("assistant", example["output"])
        asked = Message("user", self.prompt(question.content))
        return msgspec.structs.replace(
            request,
            messages=(*before[:num_system], *shown, *before[num_system:], asked),
            params=msgspec.structs.replace(
                request.params,
                temperature=self.temperature,
                max_tokens=self.max_tokens,
                clips_max_tokens=True,
                stop=(),  # the model's own would cut the JSON
            ),
        )

    def question(self, model: LanguageModel, *messages: Message, owner: str, **sampling: Any) -> ChatRequest:
        """What `model` is asked, told to say how probable each token is. `sampling` overrules the version's."""
        params = SamplingParams(top_p=model.top_p, top_k=model.top_k, min_p=model.min_p, num_logprobs=0)
        asked = ChatRequest(messages=model.with_system_prompt(messages), params=params, owner=owner)
        asked = self.applied_to(asked)
        return msgspec.structs.replace(asked, params=msgspec.structs.replace(asked.params, **sampling))


class TryOutQuerySet(models.QuerySet["TryOut"]):
    def owned_by(self, user: User | AnonymousUser) -> TryOutQuerySet:
        return self.filter(owner_id=user.pk) if user.pk else self.none()

    def keep(self, owner: User, version: SchemaVersion, **fields: Any) -> TryOut:
        """Save one; the oldest of its owner and schema goes when there are too many."""
        with transaction.atomic():
            kept = self.create(owner=owner, version=version, **fields)
            others = self.owned_by(owner).filter(version__schema_id=version.schema_id)
            self.filter(pk__in=list(others.values_list("pk", flat=True)[MAX_KEPT:])).delete()
        return kept


class TryOut(models.Model):
    """What a version once made of an input, for its owner to look at again."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="try_outs")
    version = models.ForeignKey(SchemaVersion, on_delete=models.CASCADE, related_name="try_outs")
    model_name = models.CharField(max_length=100)
    input = models.TextField()
    text = models.TextField(help_text="The JSON, as text: the order of properties counts.")
    account = models.JSONField(help_text="Guarantee, unenforced, attempts, fields, usage and finish reason.")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = TryOutQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return f"{self.version}: {self.input[:60]}"
