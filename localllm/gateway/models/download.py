"""A file of the hub on its way to this machine. That it waits, runs or has failed says its job."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db import models, transaction

from localllm.gateway.models.job import Job
from localllm.gateway.models.language_model import LanguageModel
from localllm.inference.hub.download import Progress
from localllm.inference.hub.files import HubFile, Part


class DownloadQuerySet(models.QuerySet["Download"]):
    def unfinished(self) -> DownloadQuerySet:
        """Waiting, running, paused or failed; the newest first."""
        return self.exclude(job__state__in=("complete", "cancelled")).select_related("job")

    def complete(self) -> DownloadQuerySet:
        """Those whose model is still here; the newest first."""
        return self.filter(job__state="complete", model__isnull=False).select_related("job", "model")

    def request(self, file: HubFile, user: User | None = None, **defaults: Any) -> Download:
        """Queue it. Whoever asks for a file that is under way, paused or failed shares that download.

        `defaults` are fields of the model that it becomes.
        """
        with transaction.atomic():
            download = self.unfinished().filter(sha256=file.sha256).first()
            if download is None:
                return self._create(file, user, defaults)
            download.job.resume()
            download.job.refresh_from_db()
            return download

    def _create(self, file: HubFile, user: User | None, defaults: dict[str, Any]) -> Download:
        # The job has no owner: it is the machine's, which downloads one file at a time.
        job = Job.objects.create(kind=Download.KIND, title=f"{file.name} from {file.repo}"[:300])
        return self.create(
            job=job,
            user=user,
            repo=file.repo,
            commit=file.commit,
            name=file.name,
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            defaults=defaults,
            parts=[[part.path, part.size_bytes, part.sha256] for part in file.parts],
        )


class Download(models.Model):
    KIND = "download"

    job = models.OneToOneField(Job, on_delete=models.CASCADE, related_name="download")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, help_text="Who asked for it first."
    )
    repo = models.CharField(max_length=200)
    commit = models.CharField(max_length=40)
    name = models.TextField(help_text="What the repository calls it.")
    sha256 = models.CharField(max_length=64, db_index=True)
    size_bytes = models.BigIntegerField()
    parts = models.JSONField(help_text="Path, size and SHA-256 of each.")
    defaults = models.JSONField(default=dict, help_text="Fields of the model that it becomes.")
    model = models.ForeignKey(LanguageModel, null=True, on_delete=models.SET_NULL, help_text="What it became.")

    # How far it is
    num_bytes = models.BigIntegerField(default=0)
    bytes_per_s = models.FloatField(default=0.0)
    delay = models.TextField(blank=True, help_text="Why nothing comes at the moment.")

    objects = DownloadQuerySet.as_manager()

    class Meta:
        ordering = ("-job__created_at",)

    def __str__(self) -> str:
        return self.job.title

    @property
    def file(self) -> HubFile:
        return HubFile(self.repo, self.commit, tuple(Part(*part) for part in self.parts))

    @property
    def progress(self) -> Progress:
        return Progress(self.num_bytes, self.size_bytes, self.bytes_per_s, self.delay)

    def advance(self, progress: Progress) -> bool:
        """Note how far it is. False when this run of its job is over: paused, cancelled, deleted or taken over."""
        return bool(
            Download.objects.filter(pk=self.pk, job__in=self.job.this_run).update(
                num_bytes=progress.num_bytes, bytes_per_s=progress.bytes_per_s, delay=progress.delay
            )
        )

    @property
    def label(self) -> str:
        """What people call it."""
        return str(self.defaults.get("title") or self.file.label)

    @property
    def is_being_tried(self) -> bool:
        """All is here, and is checked and tried out before it may serve."""
        return self.job.state == "running" and self.num_bytes >= self.size_bytes

    def complete(self, model: LanguageModel) -> None:
        """A model that chats takes over from the starter by itself: until then there was only a toy."""
        if not model.is_embedding and LanguageModel.objects.filter(is_default=True, is_starter=True).exists():
            model.make_default()
        self.model, self.num_bytes, self.bytes_per_s, self.delay = model, self.size_bytes, 0.0, ""
        self.save(update_fields=["model", "num_bytes", "bytes_per_s", "delay"])
