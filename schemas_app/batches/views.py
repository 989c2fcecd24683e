"""The pages of batches. Each is looked up among the reader's own; to others it does not exist.

htmx is answered with a fragment, a plain form with a redirect to the page.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.core.paginator import Paginator
from django.http import HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.text import slugify
from django.views.decorators.http import require_GET, require_POST
from django_htmx.http import HttpResponseClientRedirect

from localllm.gateway import data_view, database, jobs
from localllm.gateway.models import Job, LanguageModel
from localllm.gateway.pages.request import Request
from schemas_app.batches import export
from schemas_app.batches.forms import BatchForm
from schemas_app.batches.models import Batch

PER_PAGE = 25
SHOWN = 5  # inputs of a preview
FILTERS = (("", "All"), ("done", "Done"), ("failed", "Failed"), ("waiting", "Waiting"))
EXPORTS = {"csv": (export.csv_file, "text/csv"), "jsonl": (export.jsonl, "application/x-ndjson")}


@require_GET
def batches(request: Request) -> HttpResponse:
    rows = Batch.objects.owned_by(request.user).select_related("job", "schema_version__schema", "model")
    return render(
        request, "schemas/batches.html", {"page": Paginator(rows, PER_PAGE).get_page(request.GET.get("page"))}
    )


@require_GET
def new(request: Request) -> HttpResponse:
    default = LanguageModel.objects.filter(is_default=True).first()
    initial = {"schema": request.GET.get("schema"), "model": default and default.name}
    return _new_page(request, BatchForm(user=request.user, initial=initial))


@require_POST
def preview(request: Request) -> HttpResponse:
    """What the form would start: its first inputs, or what is wrong with it."""
    form = BatchForm(request.POST, request.FILES, user=request.user)
    return render(request, "schemas/_batch_preview.html", _preview(form))


@require_POST
def create(request: Request) -> HttpResponse:
    form = BatchForm(request.POST, request.FILES, user=request.user)
    if not form.is_valid():
        return _new_page(request, form)
    version = form.cleaned_data["schema"].current
    batch = Batch.objects.begin(request.user, version, form.cleaned_data["model"], form.inputs, source=form.source)
    jobs.runner.wake()
    return redirect("schemas:batch", batch.pk)


@require_GET
def show(request: Request, batch_id: UUID) -> HttpResponse:
    batch = _own(request, batch_id)
    return render(request, "schemas/batch.html", {**_progress(batch), **_rows(request, batch)})


@require_GET
def progress(request: Request, batch_id: UUID) -> HttpResponse:
    return render(request, "schemas/_batch_progress.html", _progress(_own(request, batch_id)))


@require_GET
def rows(request: Request, batch_id: UUID) -> HttpResponse:
    return render(request, "schemas/_batch_rows.html", _rows(request, _own(request, batch_id)))


@require_POST
def pause(request: Request, batch_id: UUID) -> HttpResponse:
    return _change(request, batch_id, Job.pause)


@require_POST
def resume(request: Request, batch_id: UUID) -> HttpResponse:
    return _change(request, batch_id, Job.resume)


@require_POST
def cancel(request: Request, batch_id: UUID) -> HttpResponse:
    return _change(request, batch_id, Job.cancel)


@require_POST
def retry(request: Request, batch_id: UUID) -> HttpResponse:
    """All failed rows, or the one of `number`."""
    number = request.POST.get("number", "")
    _own(request, batch_id).retry(int(number) if number.isascii() and number.isdecimal() else None)
    return _changed(request, batch_id)


@require_POST
def delete(request: Request, batch_id: UUID) -> HttpResponse:
    _own(request, batch_id).job.delete()
    jobs.runner.wake()
    batches = reverse("schemas:batches")
    return HttpResponseClientRedirect(batches) if request.htmx else redirect(batches)


@require_GET
async def download(request: Request, batch_id: UUID, format: str) -> StreamingHttpResponse:
    user = await request.auser()
    batch = await database.read(get_object_or_404, Batch.objects.owned_by(user).select_related("job"), pk=batch_id)
    lines, content_type = EXPORTS[format]
    name = slugify(batch.job.title.replace(".", " "))[:60] or "batch"
    return StreamingHttpResponse(
        lines(batch),
        content_type=f"{content_type}; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}.{format}"'},
    )


def _own(request: Request, id: UUID) -> Batch:
    rows = Batch.objects.owned_by(request.user).select_related("job", "schema_version__schema", "model")
    return get_object_or_404(rows, pk=id)


def _change(request: Request, id: UUID, verb: Any) -> HttpResponse:
    verb(_own(request, id).job)
    return _changed(request, id)


def _changed(request: Request, id: UUID) -> HttpResponse:
    jobs.runner.wake()
    return redirect("schemas:batch", id)


def _new_page(request: Request, form: BatchForm) -> HttpResponse:
    context = {"form": form, **(_preview(form) if form.is_bound else {})}
    return render(request, "schemas/batch_new.html", context, status=400 if form.is_bound else 200)


def _preview(form: BatchForm) -> dict[str, Any]:
    form.is_valid()
    return {"form": form, "first": form.inputs[:SHOWN], "num_more": max(0, len(form.inputs) - SHOWN)}


def _progress(batch: Batch) -> dict[str, Any]:
    return {
        "batch": batch,
        "job": batch.job,
        "pace": batch.pace() if batch.job.state == "running" else None,
        "failures": batch.failures(),
    }


def _rows(request: Request, batch: Batch) -> dict[str, Any]:
    """A page of rows, all or those of `?status=`."""
    status = request.GET.get("status", "")
    status = status if status in dict(FILTERS) else ""
    found = batch.rows.filter(status=status) if status else batch.rows.all()
    page = Paginator(found, PER_PAGE).get_page(request.GET.get("page"))
    shown = [(row, data_view.render(row.output) if row.output else "") for row in page]
    return {
        "batch": batch,
        "job": batch.job,
        "page": page,
        "rows": shown,
        "status": status,
        "filters": FILTERS,
        "filter": f"&status={status}" if status else "",
        "is_changing": batch.job.is_live and any(row.status == "waiting" for row, _ in shown),
    }
