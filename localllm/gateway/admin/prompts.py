"""Prompt templates, to be read, and to find the pages where they are written, tried and taken back."""

from __future__ import annotations

from django.contrib import admin

from localllm.gateway.admin.read_only import Kept
from localllm.gateway.models import PromptTemplate, PromptTemplateVersion


class PromptTemplateVersionInline(Kept, admin.StackedInline):  # type: ignore[type-arg]
    model = PromptTemplateVersion
    fk_name = "template"
    fields = readonly_fields = ("number", "created_by", "created_at", "note", "text")
    extra = 0


@admin.register(PromptTemplate)
class PromptTemplateAdmin(Kept, admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("name", "family", "use_case", "current", "is_shipped", "deleted_at")
    list_filter = ("use_case", "family", "is_shipped")
    search_fields = ("name", "family", "description", "versions__text")
    list_select_related = ("current__template",)
    inlines = (PromptTemplateVersionInline,)

    def view_on_site(self, template: PromptTemplate) -> str:
        return template.get_absolute_url()
