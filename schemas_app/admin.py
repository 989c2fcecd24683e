"""Schemas as an admin sees them: edited by the app's own form, so that nothing enters here that it would refuse."""

from __future__ import annotations

import contextlib
from typing import Any

from asgiref.sync import async_to_sync
from django.contrib import admin
from django.db.models import Max, QuerySet
from django.http import HttpRequest, HttpResponse

from localllm.gateway.admin.read_only import Kept
from localllm.gateway.pages.request import unix_lines
from localllm.gateway.structured import compiler
from localllm.inference.json_schema.errors import SchemaRefused
from schemas_app.forms import ExamplesField, ExamplesWidget, SchemaForm
from schemas_app.models import CONTENT, Schema, SchemaVersion


class SchemaAdminForm(SchemaForm):
    examples = ExamplesField(required=False, widget=ExamplesWidget(num_empty=2))


class SchemaVersionInline(Kept, admin.StackedInline):  # type: ignore[type-arg]
    model = SchemaVersion
    fields = readonly_fields = ("number", "author", "created_at", *CONTENT)
    extra = 0


@admin.register(Schema)
class SchemaAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    form = SchemaAdminForm
    list_display = ("name", "slug", "owner", "is_shared", "number", "created_at")
    list_filter = ("is_shared", "owner")
    search_fields = ("name", "slug", "description", "owner__username")
    list_select_related = ("owner",)
    inlines = (SchemaVersionInline,)
    fieldsets = (
        (None, {"fields": ("name", "slug", "description", "owner", "is_shared")}),
        ("What it says", {"description": "A change makes a new version.", "fields": CONTENT}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Schema]:
        schemas: QuerySet[Schema] = super().get_queryset(request)
        return schemas.annotate(number=Max("versions__number"))

    @admin.display(description="version", ordering="number")
    def number(self, schema: Any) -> int:
        return int(schema.number)

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Compiles beforehand: Django's own holds a transaction open, and the form finds it remembered then."""
        if request.method == "POST":
            with contextlib.suppress(SchemaRefused):
                async_to_sync(compiler.compile)(unix_lines(request.POST.get("text", "")))
        return super().changeform_view(request, *args, **kwargs)

    def save_model(self, request: HttpRequest, obj: Schema, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        form.add_version(request.user)
