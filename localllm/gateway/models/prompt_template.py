"""Prompt templates by use case and family of models, and their versions, which never change.

The current version of a template is a choice, not the newest one: a version may be tried in an experiment or in
a replay first, and rolling back is choosing an older one.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml
from django.conf import settings
from django.contrib.auth.models import User
from django.db import models, transaction
from django.db.models import Max, Q
from django.urls import reverse
from django.utils import timezone

from localllm.gateway.models.language_model import LanguageModel
from localllm.inference.prompt_template import Template

SHIPPED = Path(__file__).parents[1] / "data/prompt_templates.yaml"


@dataclass(frozen=True, slots=True)
class UseCase:
    """What a prompt is for. `samples` are the variables it may use, each with a value to try it with."""

    title: str
    samples: Mapping[str, str]


USE_CASES = {
    "chat": UseCase("Chat", {"system_prompt": "You are a helpful assistant.", "date": "21 November 2026"}),
    "rag_query": UseCase(
        "Question about passages",
        {
            "passages": "[1] The mill was built in 1887.\n[2] It closed in 1954.",
            "question": "When was the mill built?",
        },
    ),
    "summarization": UseCase(
        "Summary",
        {
            "text": "The council met on Tuesday. It granted the school 40,000 euros for a new roof.",
            "max_tokens": "200",
            "focus": "decisions and sums",
        },
    ),
    "compression": UseCase(
        "Conversation made short",
        {
            "summary": "Ada plans a trip to Lisbon in May.",
            "turns": "User: My budget is 900 euros.\nAssistant: Then the night train is too dear.",
            "max_tokens": "300",
        },
    ),
    "extraction": UseCase(
        "Data from a text",
        {
            "text": "Call Ada Lovelace at +44 20 7946 0000.",
            "schema": '{"type": "object", "properties": {"name": {"type": "string"}}}',
        },
    ),
    "routing": UseCase("How hard a question is", {"question": "Why is the sky blue?"}),
    "title": UseCase(
        "Title of a chat", {"question": "Why is the sky blue?", "answer": "Air scatters blue light more than red."}
    ),
}
MESSAGE = "message"  # what people write themselves: any variables, asked for when it is chosen
CHOICES = [*((name, use_case.title) for name, use_case in USE_CASES.items()), (MESSAGE, "Message")]


def chat_variables(system_prompt: str) -> dict[str, str]:
    """What a template for the system prompt of a conversation may use."""
    today = timezone.localdate()
    return {"system_prompt": system_prompt, "date": f"{today.day} {today:%B %Y}"}


class PromptTemplateError(Exception):
    """That cannot be done with a template now; `str(exc)` is for the user."""


class PromptTemplateQuerySet(models.QuerySet["PromptTemplate"]):
    def for_use(self, use_case: str, model: LanguageModel, subject: str = "") -> PromptTemplateVersion:
        """What `model` is asked with for a use case; `subject` as `PromptTemplate.version_for` takes it."""
        return self.named(use_case, model).version_for(subject)

    def named(self, name: str, model: LanguageModel) -> PromptTemplate:
        """The template of that name for the family of `model`, or else the one for all models.

        Raises PromptTemplate.DoesNotExist.
        """
        template = self.in_use().variants_for(model).filter(name=name).order_by("-family").first()
        if template is None:
            raise PromptTemplate.DoesNotExist(f"There is no prompt template named “{name[:100]}”.")
        return template

    def variants_for(self, model: LanguageModel) -> PromptTemplateQuerySet:
        """Those for its family, and those for all models."""
        return self.filter(Q(family=model.family) | Q(family="")).select_related("current")

    def matching(self, query: str) -> PromptTemplateQuerySet:
        """Those that have every word of `query` in their name or description."""
        found = self
        for word in query.split():
            found = found.filter(Q(name__icontains=word) | Q(description__icontains=word))
        return found

    def in_use(self) -> PromptTemplateQuerySet:
        """Not deleted, and with something to say."""
        return self.filter(deleted_at=None).exclude(current=None)


class PromptTemplate(models.Model):
    """A prompt for one use. The one that a use case takes by default has the use case's name."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.SlugField(max_length=100, help_text="What chats and API clients call it.")
    family = models.SlugField(
        max_length=40, blank=True, help_text="Models it is for, such as mistral or qwen2. Empty: all others."
    )
    use_case = models.CharField(max_length=20, choices=CHOICES, default=MESSAGE)
    description = models.CharField(max_length=300, blank=True)
    current = models.ForeignKey("PromptTemplateVersion", null=True, on_delete=models.RESTRICT, related_name="+")
    is_shipped = models.BooleanField(default=False, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    deleted_at = models.DateTimeField(null=True, editable=False)

    objects = PromptTemplateQuerySet.as_manager()

    class Meta:
        ordering = ("use_case", "name", "family")
        constraints = (models.UniqueConstraint(fields=["name", "family"], name="one_template_per_name_and_family"),)

    def __str__(self) -> str:
        return f"{self.name} for {self.family}" if self.family else self.name

    def get_absolute_url(self) -> str:
        return reverse("prompts:show", args=[self.pk])

    @property
    def current_version(self) -> PromptTemplateVersion:
        if self.current is None:
            raise PromptTemplateVersion.DoesNotExist(f"The prompt template “{self}” has no current version.")
        return self.current

    def version_for(self, subject: str) -> PromptTemplateVersion:
        """The current version, or the one that an experiment gives to `subject`.

        A subject is whoever is to get the same version every time, such as `UsageLog.subject` names one.
        """
        experiment = self.experiments.filter(ended_at=None).first() if subject else None
        return self.current_version if experiment is None else experiment.drawn(subject)

    def add_version(self, text: str, *, author: User | None = None, note: str = "") -> PromptTemplateVersion:
        """Save a new version beside the others. It counts only once it is made current."""
        with transaction.atomic():
            last = self.versions.aggregate(last=Max("number"))["last"] or 0
            return self.versions.create(number=last + 1, text=text, created_by=author, note=note)

    def make_current(self, version: PromptTemplateVersion) -> None:
        """Ask with this version from now on: to publish a new one, or to roll back to an old one."""
        self.current = version
        self.save(update_fields=["current"])

    def discard(self) -> None:
        """Take it out of use; the versions stay for the log. Raises PromptTemplateError."""
        if self.is_shipped:
            raise PromptTemplateError(f"The program asks with “{self}” itself. Write another version of it instead.")
        if self.experiments.filter(ended_at=None).exists():
            raise PromptTemplateError(f"An experiment on “{self}” is running. End it first.")
        self.deleted_at = timezone.now()
        self.save(update_fields=["deleted_at"])

    def restore(self) -> None:
        self.deleted_at = None
        self.save(update_fields=["deleted_at"])


class PromptTemplateVersion(models.Model):
    """What a template said at one time. It never changes: the usage log points to it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    template = models.ForeignKey(PromptTemplate, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    text = models.TextField()
    note = models.CharField(max_length=200, blank=True, help_text="What was changed, and why.")
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+", verbose_name="author"
    )
    is_shipped = models.BooleanField(default=False, editable=False)

    class Meta:
        ordering = ("-number",)
        constraints = (models.UniqueConstraint(fields=["template", "number"], name="one_template_version_per_number"),)

    def __str__(self) -> str:
        return f"{self.template} v{self.number}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise TypeError("A version of a template never changes. Add another with PromptTemplate.add_version().")
        super().save(*args, **kwargs)

    def get_absolute_url(self) -> str:
        return f"{self.template.get_absolute_url()}?version={self.number}"

    def render(self, variables: Mapping[str, str]) -> str:
        """The prompt. Raises TemplateError, which names a variable that has no value."""
        return Template(self.text).render(variables)


class Shipped(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    use_case: str
    description: str
    text: str
    family: str = ""


def install_shipped(templates: Any, versions: Any) -> None:
    """Bring the shipped templates up to date; what somebody has written himself stays current.

    Takes the managers of the two models, which in a migration are those of its time.
    """
    for shipped in msgspec.convert(yaml.safe_load(SHIPPED.read_text(encoding="utf-8")), list[Shipped]):
        fields = {"use_case": shipped.use_case, "description": shipped.description, "is_shipped": True}
        template, _ = templates.get_or_create(name=shipped.use_case, family=shipped.family, defaults=fields)
        own = versions.filter(template=template)
        if own.filter(is_shipped=True, text=shipped.text).exists():
            continue
        number = (own.aggregate(last=Max("number"))["last"] or 0) + 1
        version = versions.create(template=template, number=number, text=shipped.text, is_shipped=True)
        if template.current is None or template.current.is_shipped:
            templates.filter(pk=template.pk).update(current=version)
