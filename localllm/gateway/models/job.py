"""What takes long and goes on without its asker: its state, how far it is, and the verbs that change them.

Every change is guarded by the state it starts from, so two processes never both win. What a job does is
the business of its kind (gateway/jobs.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from django.db import models, transaction
from django.db.models import Exists, F, OuterRef, Q
from django.utils import timezone


class JobQuerySet(models.QuerySet["Job"]):
    def owned_by(self, user: User | AnonymousUser) -> JobQuerySet:
        return self.filter(owner_id=user.pk) if user.pk else self.none()

    def claim_next(self, kinds: Iterable[str]) -> Job | None:
        """Take the oldest queued job to run it. Of one owner's jobs of a kind, one runs at a time.

        Jobs without an owner are the machine's, one of a kind at a time.
        """
        is_same_owner = Q(owner=OuterRef("owner")) | Q(owner=None)
        same = Job.objects.filter(is_same_owner, kind=OuterRef("kind"), state="running")
        with transaction.atomic():
            job = self.filter(~Exists(same), state="queued", kind__in=kinds).order_by("created_at").first()
            return job if job is not None and job.begin() else None

    def requeue_interrupted(self) -> int:
        """At start: what a process that died was running is run again."""
        return self.filter(state="running").update(state="queued")


class Job(models.Model):
    """One long piece of work. Paused, complete, failed and cancelled jobs stay so over restarts."""

    LIVE = ("queued", "running")
    OVER = ("complete", "failed", "cancelled")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(max_length=32)
    title = models.CharField(max_length=300)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE, related_name="jobs")
    state = models.CharField(
        max_length=12, default="queued", choices=[(s, s) for s in ("queued", "running", "paused", *OVER)]
    )
    parameters = models.JSONField(
        default=dict, help_text="What its kind needs to know, where that has no row of its own."
    )
    error = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, help_text="The last time that it began to run.")
    finished_at = models.DateTimeField(null=True)

    # How far it is, in pieces of whatever it does
    num_total = models.PositiveIntegerField(default=0)
    num_done = models.PositiveIntegerField(default=0)
    num_failed = models.PositiveIntegerField(default=0)

    objects = JobQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at",)
        indexes = (models.Index(fields=["state", "created_at"]),)

    def __str__(self) -> str:
        return self.title

    @property
    def is_live(self) -> bool:
        return self.state in self.LIVE

    @property
    def num_over(self) -> int:
        return self.num_done + self.num_failed

    @property
    def num_left(self) -> int:
        return self.num_total - self.num_over

    @property
    def can_resume(self) -> bool:
        return self.state in ("paused", "failed")

    @property
    def can_cancel(self) -> bool:
        return self.is_live or self.can_resume

    def begin(self) -> bool:
        """Run it. Only who began it last has a say in how it ends."""
        self.started_at = timezone.now()
        return self._move(("queued",), "running", started_at=self.started_at, finished_at=None, error="")

    def pause(self) -> bool:
        return self._move(self.LIVE, "paused")

    def resume(self) -> bool:
        return self._move(("paused", "failed"), "queued", error="", finished_at=None)

    def cancel(self) -> bool:
        return self._move((*self.LIVE, "paused", "failed"), "cancelled", finished_at=timezone.now())

    def run_again(self) -> bool:
        """There is more to do than when it began; while it runs, it is begun anew."""
        return self._move(("running", "complete", "failed"), "queued", error="", finished_at=None)

    def finish(self, error: str = "") -> bool:
        end = {"state": "failed" if error else "complete", "error": error, "finished_at": timezone.now()}
        return bool(self.this_run.update(**end))

    @property
    def this_run(self) -> JobQuerySet:
        """Its row while it runs as it was begun here; none when it was stopped, or another process took it over."""
        return Job.objects.filter(pk=self.pk, state="running", started_at=self.started_at)

    def count(self, *, done: int = 0, failed: int = 0) -> None:
        """Add to what is done, in the transaction that makes it so."""
        Job.objects.filter(pk=self.pk).update(num_done=F("num_done") + done, num_failed=F("num_failed") + failed)

    def advance(self, done: int, total: int) -> bool:
        """Note how far it is, for a kind that begins anew each time. False when it runs no more."""
        running = Job.objects.filter(pk=self.pk, state="running")
        return bool(running.update(num_done=done, num_total=total))

    def _move(self, states: Iterable[str], state: str, **fields: Any) -> bool:
        """False if another was first, and it was in none of `states` any more."""
        return bool(Job.objects.filter(pk=self.pk, state__in=states).update(state=state, **fields))
