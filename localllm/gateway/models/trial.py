"""A version of a template tried on what was asked before, so that it is known before any user meets it."""

from __future__ import annotations

from typing import Any

import msgspec
from django.contrib.auth.models import AnonymousUser, User
from django.db import models, transaction
from django.db.models import Sum

from localllm.gateway.models.job import Job
from localllm.gateway.models.prompt_template import PromptTemplate, PromptTemplateError, PromptTemplateVersion
from localllm.gateway.models.usage import UsageLog
from localllm.inference.prompt_template import TemplateError, replaced
from localllm.inference.types import ChatRequest, SamplingParams, Usage

MAX_ANSWERS = 200


class TrialQuerySet(models.QuerySet["Trial"]):
    def owned_by(self, user: User | AnonymousUser) -> TrialQuerySet:
        return self.filter(job__owner_id=user.pk) if user.pk else self.none()

    def of(self, template: PromptTemplate) -> TrialQuerySet:
        return self.filter(version__template=template).select_related("job", "version")

    def begin(self, owner: User, version: PromptTemplateVersion, number: int) -> Trial:
        """Queue the last `number` prompts of the template that `owner` may see. Raises PromptTemplateError."""
        logged = list(UsageLog.objects.visible_to(owner).asked_with(version.template)[: min(number, MAX_ANSWERS)])
        if not logged:
            raise PromptTemplateError(
                f"Nothing that you may see was asked with “{version.template}” yet, except for answers by a schema, "
                "which cannot be tried. Ask something with it first."
            )
        with transaction.atomic():
            job = Job.objects.create(kind=Trial.KIND, title=f"{version} tried", owner=owner, num_total=len(logged))
            trial = self.create(job=job, version=version)
            TrialAnswer.objects.bulk_create(
                TrialAnswer.of(trial, number, row) for number, row in enumerate(logged, start=1)
            )
        return trial


class Trial(models.Model):
    """The version that is tried. Its id is the job's."""

    KIND = "trial"

    job = models.OneToOneField(Job, primary_key=True, on_delete=models.CASCADE, related_name="trial")
    version = models.ForeignKey(PromptTemplateVersion, on_delete=models.CASCADE, related_name="trials")

    objects = TrialQuerySet.as_manager()

    class Meta:
        ordering = ("-job__created_at",)

    def __str__(self) -> str:
        return self.job.title

    def next_waiting(self) -> TrialAnswer | None:
        related = ("usage__model", "usage__template_version")
        return self.answers.filter(status="waiting").select_related(*related).first()

    def tokens(self) -> tuple[int, int]:
        """Of all answers that were written again: before, and now."""
        done = self.answers.filter(status="done")
        sums = done.aggregate(before=Sum("usage__completion_tokens"), after=Sum("completion_tokens"))
        return sums["before"] or 0, sums["after"] or 0


class TrialAnswer(models.Model):
    """One logged answer, and the one that the version tried gives to the same question."""

    trial = models.ForeignKey(Trial, on_delete=models.CASCADE, related_name="answers")
    number = models.PositiveIntegerField()
    usage = models.ForeignKey(UsageLog, null=True, on_delete=models.SET_NULL, related_name="+")
    question = models.TextField()
    before = models.TextField()
    after = models.TextField(blank=True)
    status = models.CharField(max_length=8, default="waiting", choices=[(s, s) for s in ("waiting", "done", "failed")])
    error = models.TextField(blank=True)
    completion_tokens = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ("number",)
        constraints = (models.UniqueConstraint(fields=["trial", "number"], name="one_trial_answer_per_number"),)

    def __str__(self) -> str:
        return self.question[:60]

    @classmethod
    def of(cls, trial: Trial, number: int, row: UsageLog) -> TrialAnswer:
        *asked, answer = row.dialogue
        return cls(trial=trial, number=number, usage=row, question=asked[-1].content, before=answer.content)

    def request(self, version: PromptTemplateVersion) -> ChatRequest:
        """What was asked, as `version` asks it, with the same seed. Raises TemplateError."""
        row = self.usage
        if row is None or row.template_version is None:
            raise TemplateError("The record of this answer is gone meanwhile, so it cannot be asked again.")
        before, after = (each.render(row.template_variables) for each in (row.template_version, version))
        sampling = {name: row.parameters[name] for name in SamplingParams.__struct_fields__ if name in row.parameters}
        return ChatRequest(
            messages=replaced(row.dialogue[:-1], before, after),
            params=msgspec.convert(sampling | {"clips_max_tokens": True}, SamplingParams),
            owner=f"trial:{self.trial_id}",
        )

    def succeed(self, text: str, usage: Usage) -> None:
        self._end("done", after=text, completion_tokens=usage.completion_tokens)

    def fail(self, error: str) -> None:
        self._end("failed", error=error)

    def _end(self, status: str, **fields: Any) -> None:
        with transaction.atomic():
            if TrialAnswer.objects.filter(pk=self.pk, status="waiting").update(status=status, **fields):
                self.trial.job.count(done=status == "done", failed=status == "failed")
