"""The pages of schemas: list, page, editor, comparison. Every row is looked up among those the reader may see.

htmx is answered with a fragment, a plain form with a redirect to the page.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

from asgiref.sync import async_to_sync
from django.contrib import messages
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Max
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from pygments import highlight
from pygments.formatters.html import HtmlFormatter
from pygments.lexers.data import JsonLexer

from localllm.gateway.pages.request import Request, page_or_part, unix_lines
from localllm.inference.json_schema import fields
from localllm.inference.json_schema.imports import Draft, ImportProblem, from_example, from_json_schema
from localllm.inference.json_schema.pydantic_source import from_pydantic
from schemas_app import comparison, try_it
from schemas_app.forms import BLANK, SchemaForm
from schemas_app.models import Schema, SchemaVersion
from schemas_app.report import examine

LISTED = 300  # schemas on one page; a search finds the others
# What a draft can be made from, by what the form calls it.
SOURCES: dict[str, Callable[[str], Draft]] = {
    "pydantic": from_pydantic,
    "json_schema": from_json_schema,
    "example": from_example,
}
COLUMNS = ("name", "kind", "required", "description", "least", "most", "choices")  # of a row, in the form
KINDS = [(kind, label) for kind, (label, _) in fields.KINDS.items()]


# The list and the page of a schema


@require_GET
def index(request: Request) -> HttpResponse:
    sought = request.GET.get("q", "").strip()
    schemas = Schema.objects.visible_to(request.user).matching(sought).select_related("owner")
    listed = schemas.annotate(number=Max("versions__number")).order_by("name")[: LISTED + 1]
    groups: dict[str, list[Schema]] = {"Yours": [], "Shared": [], "Shipped": []}
    for schema in listed[:LISTED]:
        groups[_group(schema, request.user)].append(schema)
    context = {"sought": sought, "groups": groups, "has_more": len(listed) > LISTED}
    return render(request, "schemas/_list.html" if request.htmx else "schemas/index.html", context)


def _group(schema: Schema, user: User) -> str:
    if schema.owner is None:
        return "Shipped"
    return "Yours" if schema.owner == user else "Shared"


@require_GET
def show(request: Request, schema_id: UUID) -> HttpResponse:
    """The current version, or the one of `?version=`."""
    schema = _visible(request, schema_id)
    versions = list(schema.versions.select_related("author").defer("text", "prompt_template", "examples"))
    version = _version(schema, request.GET.get("version")) if "version" in request.GET else schema.current
    context = {
        "schema": schema,
        "version": version,
        "versions": versions,
        "is_current": version.number == versions[0].number,
        "text": highlight(version.text, JsonLexer(), HtmlFormatter(nowrap=True)),
        "report": async_to_sync(examine)(version.text, schema.description),
        "can_edit": _can_edit(request, schema),
        **try_it.context(request.user, schema),
        "can_share": schema.owner is not None and request.user.has_perm("schemas_app.change_schema"),
    }
    return render(request, "schemas/show.html", context)


# The editor


@require_http_methods(["GET", "POST"])
def new(request: Request) -> HttpResponse:
    return _edit(request, Schema(owner=request.user))


@require_http_methods(["GET", "POST"])
def edit(request: Request, schema_id: UUID) -> HttpResponse:
    return _edit(request, _editable(request, schema_id))


def _edit(request: Request, schema: Schema) -> HttpResponse:
    form = SchemaForm(request.POST if request.method == "POST" else None, instance=schema)
    if form.is_valid():
        with transaction.atomic():
            form.save()
            version = form.add_version(request.user)
        unchanged = "Saved. What it asks for has not changed, so there is no new version."
        messages.success(request, f"Version {version.number} is saved." if version else unchanged)
        return redirect("schemas:show", schema.pk)
    text = form["text"].value() or ""
    context = {
        "form": form,
        "schema": None if schema._state.adding else schema,
        "rows": _rows(text),
        "kinds": KINDS,
        "others": Schema.objects.visible_to(request.user).exclude(pk=schema.pk)[:LISTED],
        "report": async_to_sync(examine)(text, form["description"].value() or "") if text != BLANK else None,
    }
    return render(request, "schemas/edit.html", context, status=400 if form.is_bound else 200)


def _rows(text: str) -> list[fields.Field] | None:
    """The text as rows of the field builder; None when it says more than rows can."""
    try:
        return [] if text == BLANK else fields.from_schema(json.loads(text))
    except (ValueError, RecursionError):
        return None


@require_POST
def check(request: Request) -> HttpResponse:
    """The report on a text that is being written."""
    text, description = unix_lines(request.POST.get("text", "")), request.POST.get("description", "")
    report = async_to_sync(examine)(text, description) if text.strip() else None
    return render(request, "schemas/_report.html", {"report": report})


@require_POST
def draft(request: Request) -> HttpResponse:
    """A text and the rows that say the same, made from either, from a source, or from another schema."""
    try:
        text, notes = _draft(request)
    except (ImportProblem, fields.FieldProblem) as exc:
        return render(request, "schemas/_draft.html", {"problem": str(exc)})
    context = {"source": request.POST["from"], "text": text, "notes": notes, "rows": _rows(text), "kinds": KINDS}
    return render(request, "schemas/_draft.html", context)


def _draft(request: Request) -> tuple[str, tuple[str, ...]]:
    """The text, and what it does not say of its source."""
    said = request.POST
    source = said.get("from", "")
    if source == "rows":
        columns = [said.getlist(f"field-{column}") for column in COLUMNS]
        rows = [_field(*(cell.strip() for cell in row)) for row in zip(*columns, strict=False)]
        return Draft(fields.to_schema(rows)).text, ()
    if source == "text":
        return unix_lines(said.get("text", "")), ()
    if source == "schema":
        return _visible(request, _id(said.get("schema", ""))).current.text, ()
    if source not in SOURCES:
        raise ImportProblem(f"“{source[:40]}” is no source. Expected one of {', '.join(SOURCES)}, schema, rows, text.")
    made = SOURCES[source](unix_lines(said.get("source", "")))
    return made.text, made.notes


def _field(name: str, kind: str, required: str, description: str, least: str, most: str, choices: str) -> fields.Field:
    return fields.Field(name, kind, bool(required), description, least, most, choices)


# What becomes of a schema


@require_POST
def duplicate(request: Request, schema_id: UUID) -> HttpResponse:
    """A copy of one's own, of the current version."""
    schema = _visible(request, schema_id)
    name = f"{schema.name[:90]} (copy)"
    with transaction.atomic():
        copy = Schema.objects.create(
            owner=request.user, name=name, slug=Schema.objects.free_slug(name), description=schema.description
        )
        copy.add_version(author=request.user, **schema.current.content)
    messages.success(request, "This is your own copy.")
    return redirect("schemas:edit", copy.pk)


@require_POST
def share(request: Request, schema_id: UUID) -> HttpResponse:
    """Let everybody use a schema, or nobody else again."""
    if not request.user.has_perm("schemas_app.change_schema"):
        raise PermissionDenied("Your account may not share schemas. Ask an admin of this server.")
    schema = get_object_or_404(Schema.objects.editable_by(request.user).exclude(owner=None), pk=schema_id)
    schema.is_shared = not schema.is_shared
    schema.save(update_fields=["is_shared"])
    if not Schema.objects.visible_to(request.user).filter(pk=schema_id).exists():
        return redirect("schemas:index")
    messages.success(request, "Everybody can use it now." if schema.is_shared else "It is for its owner alone now.")
    return redirect("schemas:show", schema_id)


@require_http_methods(["GET", "POST"])
def delete(request: Request, schema_id: UUID) -> HttpResponse:
    schema = _editable(request, schema_id)
    if request.method == "GET":
        return page_or_part(request, "schemas/delete.html", {"schema": schema})
    schema.delete()
    messages.success(request, f"“{schema}” is deleted.")
    return redirect("schemas:index")


@require_GET
def compare(request: Request, schema_id: UUID) -> HttpResponse:
    """Version `?from=` beside version `?to=`."""
    schema = _visible(request, schema_id)
    before, after = (_version(schema, request.GET.get(name)) for name in ("from", "to"))
    context = {
        "schema": schema,
        "before": before,
        "after": after,
        "numbers": list(schema.versions.values_list("number", flat=True)),
        "parts": comparison.compare(before, after),
        "can_edit": _can_edit(request, schema),
    }
    return render(request, "schemas/compare.html", context)


@require_POST
def roll_back(request: Request, schema_id: UUID) -> HttpResponse:
    """A new version that says what an old one said."""
    schema = _editable(request, schema_id)
    old = _version(schema, request.POST.get("version"))
    if old.content == schema.current.content:
        messages.info(request, f"The current version says what version {old.number} says already.")
    else:
        version = schema.add_version(author=request.user, **old.content)
        messages.success(request, f"Version {old.number} is back, as version {version.number}.")
    return redirect("schemas:show", schema_id)


# Rows


def _visible(request: Request, schema_id: UUID | None) -> Schema:
    return get_object_or_404(Schema.objects.visible_to(request.user).select_related("owner"), pk=schema_id)


def _editable(request: Request, schema_id: UUID) -> Schema:
    return get_object_or_404(Schema.objects.editable_by(request.user), pk=schema_id)


def _can_edit(request: Request, schema: Schema) -> bool:
    return Schema.objects.editable_by(request.user).filter(pk=schema.pk).exists()


def _version(schema: Schema, number: Any) -> SchemaVersion:
    """The version of that number; the current one if there is none."""
    is_number = isinstance(number, str) and number.isascii() and number.isdecimal() and len(number) < 9
    return get_object_or_404(schema.versions, number=int(number)) if is_number else schema.current


def _id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
