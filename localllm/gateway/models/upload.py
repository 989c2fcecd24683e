"""A model file on its way from a browser, in chunks. Once it is whole, a job makes a model of it."""

from __future__ import annotations

import uuid
from datetime import datetime

from django.conf import settings
from django.contrib.auth.models import User
from django.db import models

from localllm.gateway.models.job import Job
from localllm.gateway.models.language_model import LanguageModel


class UploadQuerySet(models.QuerySet["Upload"]):
    def of(self, user: User) -> UploadQuerySet:
        return self.filter(user=user).select_related("job", "model")

    def unfinished(self) -> UploadQuerySet:
        """Those that wait for more bytes."""
        return self.filter(job=None, error="")

    def abandoned(self, since: datetime) -> UploadQuerySet:
        """What nobody has sent anything of, or looked after, for so long."""
        return self.filter(updated_at__lt=since).exclude(job__state__in=Job.LIVE)


class Upload(models.Model):
    KIND = "upload"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    name = models.CharField(max_length=300, help_text="As the browser calls the file: a label, no path.")
    size_bytes = models.BigIntegerField()
    modified_ms = models.BigIntegerField(default=0, help_text="When the file was last changed, as the browser says.")
    num_bytes = models.BigIntegerField(default=0, help_text="How many have come.")
    description = models.CharField(max_length=200, blank=True, help_text="What its header says, once that is here.")
    sha256 = models.CharField(max_length=64, blank=True, help_text="Once it is whole.")
    error = models.TextField(blank=True, help_text="Why it was refused before it was whole.")
    job = models.OneToOneField(Job, null=True, on_delete=models.SET_NULL, related_name="upload")
    model = models.ForeignKey(LanguageModel, null=True, on_delete=models.SET_NULL, help_text="What it became.")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects = UploadQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return self.name

    @property
    def state(self) -> str:
        """`receiving`, then as its job: `queued running paused complete failed cancelled`; `failed` if refused."""
        if self.job is not None:
            return self.job.state
        return "failed" if self.error else "receiving"

    @property
    def reason(self) -> str:
        """Why it failed."""
        return self.error or (self.job.error if self.job else "")

    @property
    def percent(self) -> int:
        return 100 * self.num_bytes // self.size_bytes
