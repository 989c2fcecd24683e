"""A generation run again, and what came of it. That it waits, runs or has failed says its job."""

from __future__ import annotations

import uuid

import msgspec
from django.conf import settings
from django.contrib.auth.models import User
from django.db import models, transaction

from localllm.gateway.models.job import Job
from localllm.gateway.models.usage import UsageLog, unpack_ids
from localllm.inference.engine.replay import Difference, Replayed


class ReplayQuerySet(models.QuerySet["Replay"]):
    def request(self, generation: UsageLog, user: User) -> Replay:
        """Queue one; whoever asks while one of this generation is under way shares it."""
        with transaction.atomic():
            live = self.filter(generation=generation, job__state__in=Job.LIVE).select_related("job").first()
            if live is not None:
                return live
            # The job has no owner: it is the machine's, which replays one generation at a time.
            num_total = len(unpack_ids(bytes(generation.output_ids)))
            job = Job.objects.create(kind=Replay.KIND, title=f"Replay of {generation}"[:300], num_total=num_total)
            return self.create(job=job, generation=generation, user=user)


class Replay(models.Model):
    KIND = "replay"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    job = models.OneToOneField(Job, on_delete=models.CASCADE, related_name="replay")
    generation = models.ForeignKey(UsageLog, on_delete=models.CASCADE, related_name="replays")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL)
    created_at = models.DateTimeField(auto_now_add=True)
    result = models.JSONField(null=True, help_text="Equal tokens, and the first different one if there is one.")
    notes = models.JSONField(default=list, help_text="What to know about the result, in sentences.")

    objects = ReplayQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return self.job.title

    @property
    def is_match(self) -> bool:
        return self.result is not None and self.result["difference"] is None

    @property
    def difference(self) -> Difference | None:
        return msgspec.convert(self.result, Replayed).difference if self.result else None

    def advance(self, num_tokens: int) -> bool:
        """Note how far it is. False when its job runs no more."""
        return bool(self.job.this_run.update(num_done=num_tokens))

    def complete(self, result: Replayed, notes: list[str]) -> None:
        with transaction.atomic():
            self.result, self.notes = msgspec.to_builtins(result), notes
            self.save(update_fields=["result", "notes"])
            Job.objects.filter(pk=self.job_id).update(num_done=result.num_tokens)
