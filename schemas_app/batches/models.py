"""A batch: many inputs, each to be answered by one version of a schema. Knows rows; its state is its job's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib.auth.models import AnonymousUser, User
from django.db import models, transaction
from django.db.models import Count, Max
from django.utils import timezone

from localllm.gateway.models import Job, LanguageModel
from localllm.inference.amounts import duration
from localllm.inference.structured import StructuredResult

if TYPE_CHECKING:
    from schemas_app.models import SchemaVersion

CHUNK = 200  # rows read or written at once
PACE_OVER = timedelta(minutes=1)  # how far back the speed is measured


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast it goes, and how long it will take at that speed."""

    rows_per_minute: float
    left_s: float

    @property
    def left(self) -> str:
        return duration(self.left_s)


@dataclass(frozen=True, slots=True)
class Failures:
    """Rows that failed for one reason, and what one of them was told."""

    reason: str
    number: int
    example: str


class BatchQuerySet(models.QuerySet["Batch"]):
    def owned_by(self, user: User | AnonymousUser) -> BatchQuerySet:
        return self.filter(job__owner_id=user.pk) if user.pk else self.none()

    def begin(
        self, owner: User, version: SchemaVersion, model: LanguageModel, inputs: Sequence[str], *, source: str
    ) -> Batch:
        """Make the rows and queue the job, in one transaction. `source` says where the inputs are from."""
        title = f"{version.schema}: {source}"
        with transaction.atomic():
            job = Job.objects.create(kind=Batch.KIND, title=title, owner=owner, num_total=len(inputs))
            batch = self.create(job=job, schema_version=version, model=model)
            rows = (BatchRow(batch=batch, number=number, input=text) for number, text in enumerate(inputs, 1))
            BatchRow.objects.bulk_create(rows, batch_size=CHUNK)
        return batch

    def for_running(self, id: UUID) -> Batch:
        """With all the rows that answering needs."""
        return self.select_related("job__owner", "schema_version__schema", "model").get(pk=id)


class Batch(models.Model):
    """What a job of this kind extracts, with what. Its id is the job's."""

    KIND = "batch"

    job = models.OneToOneField("gateway.Job", primary_key=True, on_delete=models.CASCADE, related_name="batch")
    schema_version = models.ForeignKey("schemas_app.SchemaVersion", null=True, on_delete=models.SET_NULL)
    model = models.ForeignKey("gateway.LanguageModel", null=True, on_delete=models.SET_NULL)

    objects = BatchQuerySet.as_manager()

    class Meta:
        ordering = ("-job__created_at",)
        verbose_name_plural = "batches"

    def __str__(self) -> str:
        return self.job.title

    def waiting_after(self, number: int) -> list[BatchRow]:
        """The next rows to be answered."""
        return list(self.rows.filter(status="waiting", number__gt=number).order_by("number")[:CHUNK])

    def rows_after(self, number: int) -> list[BatchRow]:
        return list(self.rows.filter(number__gt=number).order_by("number")[:CHUNK])

    def retry(self, number: int | None = None) -> int:
        """Let the failed rows, or the one of that number, be answered again; how many there were."""
        with transaction.atomic():
            failed = self.rows.filter(status="failed")
            if number is not None:
                failed = failed.filter(number=number)
            changed = failed.update(status="waiting", error_kind="", error="", finished_at=None)
            self.job.count(failed=-changed)
            if changed:
                self.job.run_again()
        return changed

    def failures(self) -> list[Failures]:
        """By reason, the most frequent first."""
        groups = self.rows.filter(status="failed").values("error_kind").order_by()
        return [
            Failures(BatchRow.REASONS[group["error_kind"]], group["number"], group["example"])
            for group in groups.annotate(number=Count("pk"), example=Max("error")).order_by("-number")
        ]

    def pace(self) -> Pace | None:
        """Over the last minute of this run; None before a row is finished."""
        if self.job.started_at is None:
            return None
        now = timezone.now()
        since = max(self.job.started_at, now - PACE_OVER)
        number = self.rows.filter(finished_at__gte=since).count()
        if not number:
            return None
        per_second = number / max((now - since).total_seconds(), 1)
        return Pace(60 * per_second, self.job.num_left / per_second)


class BatchRow(models.Model):
    """One input and what came of it. Which rows are being answered is nowhere: those run again after a crash."""

    REASONS = {  # noqa: RUF012
        "truncated": "The answer was longer than max_tokens",
        "unsatisfiable": "Nothing satisfies the schema",
        "unsupported": "The schema cannot be decoded",
        "invalid_after_retries": "No attempt was valid",
        "too_long": "The input does not fit the model's window",
        "no_answer": "The model gave no answer",
    }

    batch = models.ForeignKey(Batch, on_delete=models.CASCADE, related_name="rows")
    number = models.PositiveIntegerField()
    input = models.TextField()
    status = models.CharField(max_length=8, default="waiting", choices=[(s, s) for s in ("waiting", "done", "failed")])
    output = models.TextField(blank=True, help_text="The JSON, as text: the order of properties counts.")
    guarantee = models.CharField(max_length=12, blank=True)
    error_kind = models.CharField(max_length=24, blank=True, choices=list(REASONS.items()))
    error = models.TextField(blank=True)
    attempts = models.PositiveSmallIntegerField(default=0)
    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ("number",)
        constraints = (models.UniqueConstraint(fields=["batch", "number"], name="one_batch_row_per_number"),)
        indexes = (models.Index(fields=["batch", "status", "number"]),)

    def __str__(self) -> str:
        return f"row {self.number}"

    def succeed(self, result: StructuredResult) -> None:
        self._end(
            "done",
            output=result.text,
            guarantee=result.guarantee,
            attempts=result.attempts,
            prompt_tokens=result.usage.prompt_tokens,
            completion_tokens=result.usage.completion_tokens,
        )

    def fail(self, kind: str, error: str) -> None:
        self._end("failed", error_kind=kind, error=error)

    def _end(self, status: str, **fields: Any) -> None:
        """Once: a row that has ended meanwhile stays as it is."""
        with transaction.atomic():
            rows = BatchRow.objects.filter(pk=self.pk, status="waiting")
            if rows.update(status=status, finished_at=timezone.now(), **fields):
                self.batch.job.count(done=status == "done", failed=status == "failed")
