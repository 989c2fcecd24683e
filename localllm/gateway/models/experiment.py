"""A/B tests of prompt templates: who gets which version, and what came of it.

A conversation (or an API key) always gets the same version, told from a hash, so nothing is stored for it. It also
counts as one observation, by the mean of its answers: answers of one conversation resemble each other, and
counted singly they would seem to prove more than they do.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from django.conf import settings
from django.contrib.auth.models import User
from django.db import models, transaction
from django.db.models import Q
from django.utils import timezone

from localllm.gateway.models.feedback import Feedback
from localllm.gateway.models.prompt_template import PromptTemplate, PromptTemplateVersion
from localllm.gateway.models.usage import UsageLog
from localllm.inference.sequential import ALPHA, MIN_COUNT, Interval, Sample, difference

MAX_ROWS = 200_000  # of the usage log that are read for one verdict, the newest


class ExperimentError(Exception):
    """That cannot be tried; `str(exc)` is for the user."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What counts as success. `score` says what one answer adds, None where it says nothing; it is told the thumb.

    Times and tokens are compared by their logarithms: a few very long answers would drown everything else.
    """

    title: str
    is_share: bool
    is_less_better: bool
    score: Callable[[UsageLog, Feedback | None], float | None]

    def shown(self, mean: float) -> str:
        """A mean in the metric's own unit."""
        return f"{mean * 100:.1f} %" if self.is_share else f"{math.exp(mean):,.0f}"

    def shown_difference(self, difference: float) -> str:
        """In points of a hundred, or as how much more or less."""
        return f"{difference * 100:+.1f} points" if self.is_share else f"{math.expm1(difference) * 100:+.1f} %"


def _approval(row: UsageLog, thumb: Feedback | None) -> float | None:
    return None if thumb is None else float(thumb.value == Feedback.UP)


def _wholeness(row: UsageLog, thumb: Feedback | None) -> float | None:
    """Of answers by a schema: whether the model came to the end of its document."""
    if row.schema_version_id is None or row.finish_reason in ("error", "cancelled"):
        return None
    return float(row.finish_reason in ("stop", "closed"))


def _magnitude(name: str) -> Callable[[UsageLog, Feedback | None], float | None]:
    def score(row: UsageLog, thumb: Feedback | None) -> float | None:
        return None if row.finish_reason in ("error", "cancelled") else math.log(max(1, getattr(row, name)))

    return score


METRICS = {
    "thumbs": Metric("Thumbs up, of all thumbs", True, False, _approval),
    "valid": Metric("Answers by a schema that are whole", True, False, _wholeness),
    "latency": Metric("Milliseconds for an answer", False, True, _magnitude("duration_ms")),
    "tokens": Metric("Tokens of an answer", False, True, _magnitude("completion_tokens")),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of one variant. `difference` is to the control, whose own is None."""

    variant: Variant
    sample: Sample
    difference: Interval | None
    is_better: bool | None  # None: not known

    @property
    def is_control(self) -> bool:
        return self.variant.is_control


class ExperimentQuerySet(models.QuerySet["Experiment"]):
    def start(
        self,
        template: PromptTemplate,
        metric: str,
        shares: dict[PromptTemplateVersion, int],
        *,
        user: User | None = None,
    ) -> Experiment:
        """Ask with several versions from now on; the shares are percents, the current version is the control.

        Raises ExperimentError.
        """
        control = template.current_version
        if control not in shares or len(shares) < 2:
            raise ExperimentError("An experiment compares the current version with at least one other. Choose another.")
        if sum(shares.values()) != 100 or min(shares.values()) < 1:
            raise ExperimentError(
                f"The shares are {', '.join(f'{share} %' for share in shares.values())}. "
                "Each has to be at least 1 %, and together they have to be 100 %."
            )
        with transaction.atomic():
            if template.experiments.filter(ended_at=None).exists():
                raise ExperimentError("An experiment on this template is running already. End it first.")
            experiment = self.create(template=template, metric=metric, started_by=user)
            for version, share in shares.items():
                experiment.variants.create(version=version, share=share, is_control=version == control)
        return experiment


class Experiment(models.Model):
    """A comparison of versions of one template, until it is ended."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    template = models.ForeignKey(PromptTemplate, on_delete=models.CASCADE, related_name="experiments")
    metric = models.CharField(max_length=10, choices=[(name, metric.title) for name, metric in METRICS.items()])
    started_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    started_at = models.DateTimeField(auto_now_add=True)
    ended_at = models.DateTimeField(null=True)
    kept = models.ForeignKey(
        PromptTemplateVersion, null=True, on_delete=models.SET_NULL, related_name="+", help_text="Current at its end."
    )

    objects = ExperimentQuerySet.as_manager()

    class Meta:
        ordering = ("-started_at",)
        constraints = (
            models.UniqueConstraint(
                fields=["template"], condition=Q(ended_at=None), name="one_experiment_per_template"
            ),
        )

    def __str__(self) -> str:
        return f"{self.template}: {self.get_metric_display()}"

    def drawn(self, subject: str) -> PromptTemplateVersion:
        """The version that `subject` gets, always the same one."""
        digest = hashlib.sha256(f"{self.pk}:{subject}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64 * 100
        variants = list(self.variants.select_related("version__template"))
        for variant in variants:
            place -= variant.share
            if place < 0:
                return variant.version
        return variants[-1].version

    def end(self, kept: PromptTemplateVersion) -> None:
        """Stop comparing, and ask with `kept` from now on: promote a variant, or stay with the control."""
        with transaction.atomic():
            ended = Experiment.objects.filter(pk=self.pk, ended_at=None).update(ended_at=timezone.now(), kept=kept)
            if ended:
                self.template.make_current(kept)

    def outcomes(self) -> list[Outcome]:
        """The control first, then each variant beside it."""
        control, *others = self.variants.select_related("version__template")
        samples = self._samples()
        return [
            Outcome(control, samples[control.version_id], None, None),
            *(self._outcome(other, samples, control, alpha=ALPHA / len(others)) for other in others),
        ]

    def _outcome(
        self, variant: Variant, samples: dict[uuid.UUID, Sample], control: Variant, *, alpha: float
    ) -> Outcome:
        sample = samples[variant.version_id]
        interval = difference(samples[control.version_id], sample, alpha=alpha)
        is_better = None
        if interval is not None and interval.is_decided:
            is_better = (interval.high < 0) == METRICS[self.metric].is_less_better
        return Outcome(variant, sample, interval, is_better)

    def _samples(self) -> dict[uuid.UUID, Sample]:
        """By version: one observation for each conversation or key, the mean of its answers."""
        scores: dict[uuid.UUID, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        answers = self._answers()
        asked = answers.values_list("message_id", flat=True)
        thumbs = Feedback.objects.on(asked) if self.metric == "thumbs" else {}  # type: ignore[arg-type]  # null: no thumb
        for row in answers:
            score = METRICS[self.metric].score(row, thumbs.get(row.message_id) if row.message_id else None)
            if score is not None and row.template_version_id is not None and row.subject:
                scores[row.template_version_id][row.subject].append(score)
        return {
            version_id: Sample.of(sum(each) / len(each) for each in scores[version_id].values())
            for version_id in self.variants.values_list("version_id", flat=True)
        }

    def _answers(self) -> models.QuerySet[UsageLog]:
        rows = UsageLog.objects.filter(
            template_version__in=self.variants.values("version"), created_at__gte=self.started_at
        )
        if self.ended_at is not None:
            rows = rows.filter(created_at__lte=self.ended_at)
        return rows.defer("prompt_ids", "output_ids", "messages")[:MAX_ROWS]

    def verdict(self, outcomes: Sequence[Outcome]) -> str:
        """In words, what the figures say so far."""
        fewest = min(outcome.sample.count for outcome in outcomes)
        if fewest < MIN_COUNT:
            return (
                f"Too little to say yet: the rarest variant has {fewest} conversations. From {MIN_COUNT} of each on, "
                "the figures say something."
            )
        better = [outcome for outcome in outcomes if outcome.is_better]
        if better:
            metric = METRICS[self.metric]
            best = min(better, key=lambda each: each.sample.mean * (1 if metric.is_less_better else -1))
            return f"{best.variant.label} is better than the current one."
        if all(outcome.is_better is False for outcome in outcomes if not outcome.is_control):
            return "The current one is better than every other."
        return "No difference shown yet: go on, or stay with the current one."


class Variant(models.Model):
    """A version that an experiment compares, and the percentage of conversations that get it."""

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="variants")
    version = models.ForeignKey(PromptTemplateVersion, on_delete=models.CASCADE, related_name="+")
    share = models.PositiveSmallIntegerField()
    is_control = models.BooleanField(default=False)

    class Meta:
        ordering = ("-is_control", "version__number")
        constraints = (models.UniqueConstraint(fields=["experiment", "version"], name="one_variant_per_version"),)

    def __str__(self) -> str:
        return f"{self.version}, {self.share} %"

    @property
    def label(self) -> str:
        return f"Version {self.version.number}"
