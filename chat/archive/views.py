"""Pages of export and import. A large file comes in parts; what is imported from it is a job's business."""

from __future__ import annotations

from pathlib import Path
from typing import cast
from uuid import UUID, uuid4

from django.contrib.auth.models import User
from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST
from django_htmx.http import trigger_client_event

from chat.archive import exporting, importing
from chat.views import own_conversation
from localllm.gateway import jobs
from localllm.gateway.models import Job
from localllm.gateway.pages.request import Request
from localllm.inference.chunked_file import WrongOffset, append
from localllm.inference.errors import HubError

MAX_BYTES = 2 << 30  # of an import file
SHOWN_IMPORTS = 10
ACCOUNT = {"json": (exporting.account_json, "application/json"), "zip": (exporting.account_zip, "application/zip")}


# Out


@require_GET
def export(request: Request, id: UUID, kind: str) -> HttpResponse:
    conversation = own_conversation(request, id)
    if kind == "md":
        body, content_type = exporting.markdown(conversation).encode(), "text/markdown; charset=utf-8"
    else:
        body, content_type = exporting.json(conversation), "application/json"
    name = exporting.file_name(conversation, kind)
    return HttpResponse(body, content_type=content_type, headers=_as_file(name))


@require_GET
async def export_account(request: HttpRequest, kind: str) -> StreamingHttpResponse:
    user = cast(User, await request.auser())
    stream, content_type = ACCOUNT[kind]
    name = f"localllm-{timezone.now():%Y-%m-%d}.{kind}"
    return StreamingHttpResponse(stream(user), content_type=content_type, headers=_as_file(name))


def _as_file(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


# In


@require_GET
def index(request: Request) -> HttpResponse:
    return _page(request)


@require_POST
def begin_import(request: Request) -> HttpResponse:
    """A file in one piece, from a form; larger ones come in parts."""
    file = request.FILES.get("file")
    if file is None:
        return _page(request, "No file was chosen. Choose an export file first.")
    importing.sweep()
    _begin(request.user, _kept(file), file.name or "")
    return redirect("chat:archive-index")


@require_POST
def add_part(request: Request, part_of: UUID) -> HttpResponse:
    """The bytes of a large file from `at` on; with its last byte the import begins. Sending a part again is safe."""
    try:
        at, size, data = int(request.GET["at"]), int(request.GET["size"]), request.body
    except (KeyError, ValueError):
        return JsonResponse({"error": "Expected numbers as at and size."}, status=400)
    if not 0 < at + len(data) <= size <= MAX_BYTES or at < 0:
        return JsonResponse({"error": f"The file is too large: {MAX_BYTES >> 30} GB at most are taken."}, status=413)
    path = importing.folder() / f"{request.user.pk}-{part_of}"
    done = JsonResponse({"at": size, "page": reverse("chat:archive-index")})
    if Job.objects.filter(kind=importing.KIND, parameters__file=path.name).exists():
        return done  # only the answer to the last part was lost
    if not at:
        importing.sweep()
        path.unlink(missing_ok=True)  # another file was chosen, or the answer to the first part was lost
    try:
        have = append(path, at, data)
    except WrongOffset as exc:
        return JsonResponse({"at": exc.num_bytes}, status=409)
    except HubError as exc:
        return JsonResponse({"error": str(exc)}, status=507)
    if have < size:
        return JsonResponse({"at": have})
    _begin(request.user, path, request.GET.get("name", ""))
    return done


def _kept(file: UploadedFile[bytes]) -> Path:
    path = importing.folder() / uuid4().hex
    with path.open("wb") as copy:
        for chunk in file.chunks():
            copy.write(chunk)
    return path


def _begin(owner: User, path: Path, name: str) -> None:
    importing.begin(owner, path, name)
    jobs.runner.wake()


@require_GET
def imports(request: Request) -> HttpResponse:
    """The list of imports, which asks for itself while one goes on."""
    context = _imports(request)
    response = render(request, "chat/_imports.html", context)
    return response if context["is_importing"] else trigger_client_event(response, "chats-changed")


@require_POST
def cancel(request: Request, import_id: UUID) -> HttpResponse:
    """What is imported already stays."""
    get_object_or_404(Job.objects.owned_by(request.user), pk=import_id, kind=importing.KIND).cancel()
    jobs.runner.wake()
    return redirect("chat:archive-index")


def _page(request: Request, problem: str = "") -> HttpResponse:
    context = {"problem": problem, "part_of": uuid4(), **_imports(request)}
    return render(request, "chat/archive.html", context, status=400 if problem else 200)


def _imports(request: Request) -> dict[str, object]:
    own = list(Job.objects.owned_by(request.user).filter(kind=importing.KIND)[:SHOWN_IMPORTS])
    return {"imports": own, "is_importing": any(job.is_live for job in own)}
