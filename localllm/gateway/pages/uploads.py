"""Files of one's own: sent by the browser in chunks (static/js/upload.js), or lying in a folder of this machine."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from localllm.gateway import own_files, uploads
from localllm.gateway.models import Upload
from localllm.gateway.pages.downloads import may_add_models
from localllm.gateway.pages.request import Request
from localllm.inference.chunked_file import WrongOffset
from localllm.inference.errors import InferenceError

NUM_SHOWN = 20


@require_GET
@may_add_models
def index(request: Request) -> HttpResponse:
    """The page; for htmx only the list of uploads, which asks for itself again while one is being checked."""
    rows = list(Upload.objects.of(request.user)[:NUM_SHOWN])
    context = {
        "uploads": rows,
        "is_live": any(row.job and row.job.is_live for row in rows),
        "chunk_bytes": settings.DATA_UPLOAD_MAX_MEMORY_SIZE,
    }
    if request.htmx:
        return render(request, "models/_uploads.html", context)
    context |= {"roots": own_files.roots(), "candidates": own_files.candidates()}
    return render(request, "models/uploads.html", context)


@require_POST
@may_add_models
def begin(request: Request) -> HttpResponse:
    size, modified_ms = _number(request, "size"), _number(request, "modified")
    if not size:
        return _problem("The size of the file is missing. Choose a file that is not empty.", 400)
    try:
        upload = uploads.begin(request.user, request.POST.get("name", ""), size, modified_ms)
    except InferenceError as exc:
        return _problem(str(exc), 400)
    return _account(upload)


def _number(request: Request, name: str) -> int:
    """As JavaScript has it; 0 for what is none."""
    text = request.POST.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 17 and int(text) < 1 << 53 else 0


@require_POST
@may_add_models
def chunk(request: Request, upload_id: UUID) -> HttpResponse:
    """The body is the chunk, at most DATA_UPLOAD_MAX_MEMORY_SIZE bytes of it. 409 says where to go on."""
    upload = _own(request, upload_id)
    offset = request.GET.get("offset", "")
    try:
        uploads.receive(upload, int(offset) if offset.isdecimal() else -1, request.body)
    except WrongOffset as exc:
        return _problem(str(exc), 409, num_bytes=exc.num_bytes)
    except InferenceError as exc:
        return _problem(str(exc), 422)
    return _account(upload)


@require_GET
@may_add_models
def status(request: Request, upload_id: UUID) -> HttpResponse:
    return _account(_own(request, upload_id))


@require_POST
@may_add_models
def cancel(request: Request, upload_id: UUID) -> HttpResponse:
    uploads.cancel(_own(request, upload_id))
    return redirect("models:uploads")


@require_POST
@may_add_models
async def register(request: HttpRequest) -> HttpResponse:
    """A file of an open folder, where it lies."""
    try:
        model = await own_files.register_from_root(request.POST.get("path", ""))
    except (InferenceError, OSError) as exc:
        messages.error(request, str(exc))
        return redirect("models:uploads")
    messages.success(request, f"{model} passed its trial and is ready.")
    return redirect("models:index")


def _own(request: Request, upload_id: UUID) -> Upload:
    return get_object_or_404(Upload.objects.of(request.user), pk=upload_id)


def _account(upload: Upload) -> JsonResponse:
    return JsonResponse(
        {
            "id": str(upload.pk),
            "name": upload.name,
            "num_bytes": upload.num_bytes,
            "size_bytes": upload.size_bytes,
            "state": upload.state,
            "error": upload.reason,
        }
    )


def _problem(error: str, status: int, **more: Any) -> JsonResponse:
    return JsonResponse({"error": error, **more}, status=status)
