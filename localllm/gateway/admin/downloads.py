"""The queue of downloads: what was asked of the hub, and how far it is."""

from __future__ import annotations

from datetime import datetime

from asgiref.sync import async_to_sync
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from localllm.gateway import downloads, jobs
from localllm.gateway.models import Download
from localllm.gateway.pages.downloads import MAY_ADD
from localllm.inference import amounts


@admin.register(Download)
class DownloadAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """What was asked of the hub. Whoever may add models may pause, resume and cancel."""

    list_display = ("name", "repo", "state", "progress", "user", "model", "created_at")
    list_filter = ("job__state", "user")
    search_fields = ("name", "repo", "sha256", "user__username")
    list_select_related = ("job", "user", "model")
    actions = ("pause", "resume", "cancel")
    fields = ("name", "repo", "commit", "sha256", "state", "progress", "delay", "error", "user", "model", "created_at")
    readonly_fields = fields

    @admin.display(ordering="job__state")
    def state(self, download: Download) -> str:
        return download.job.state

    @admin.display
    def progress(self, download: Download) -> str:
        return f"{amounts.size(download.num_bytes)} of {amounts.size(download.size_bytes)}"

    @admin.display
    def error(self, download: Download) -> str:
        return download.job.error

    @admin.display(ordering="job__created_at")
    def created_at(self, download: Download) -> datetime:
        return download.job.created_at

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False  # a download begins with a question to the hub, on the page of its repository

    def has_delete_permission(self, request: HttpRequest, obj: Download | None = None) -> bool:
        return False  # to cancel it removes its bytes, too

    def has_manage_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(MAY_ADD)

    @admin.action(description="Pause", permissions=["manage"])
    def pause(self, request: HttpRequest, chosen: QuerySet[Download]) -> None:
        self._report(request, "paused", sum(download.job.pause() for download in chosen))

    @admin.action(description="Resume, or try again", permissions=["manage"])
    def resume(self, request: HttpRequest, chosen: QuerySet[Download]) -> None:
        self._report(request, "resumed", sum(download.job.resume() for download in chosen))

    @admin.action(description="Cancel, and delete what came so far", permissions=["manage"])
    def cancel(self, request: HttpRequest, chosen: QuerySet[Download]) -> None:
        self._report(request, "cancelled", sum(async_to_sync(downloads.cancel)(download) for download in chosen))

    def _report(self, request: HttpRequest, done: str, number: int) -> None:
        jobs.runner.wake()
        self.message_user(request, f"{number} {done}.", messages.SUCCESS if number else messages.WARNING)
