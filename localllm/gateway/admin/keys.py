"""API keys: made, shown once, and revoked."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from localllm.gateway.models import ApiKey


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("name", "user", "prefix", "created_at", "last_used_at", "revoked_at")
    list_filter = ("revoked_at", "user")
    search_fields = ("name", "prefix", "user__username")
    list_select_related = ("user",)
    actions = ("revoke",)

    def get_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> tuple[str, ...]:
        return ("name", "user", "prefix", "created_at", "last_used_at", "revoked_at") if obj else ("name", "user")

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> tuple[str, ...]:
        return ("user", "prefix", "created_at", "last_used_at", "revoked_at") if obj else ()

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"user": request.user.pk, **super().get_changeform_initial_data(request)}

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        if change:
            super().save_model(request, obj, form, change)
            return
        issued, request.issued_key = ApiKey.objects.issue(obj.user, obj.name)  # type: ignore[attr-defined]
        obj.__dict__.update(issued.__dict__)

    def response_add(self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None) -> HttpResponse:
        """The key itself, this once. Not as a message: those travel in a cookie."""
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": f"Key “{obj.name}”",
            "key": request.issued_key,  # type: ignore[attr-defined]
        }
        return TemplateResponse(request, "admin/gateway/apikey/issued.html", context)

    @admin.action(description="Revoke", permissions=["change"])
    def revoke(self, request: HttpRequest, keys: QuerySet[ApiKey]) -> None:
        usable = list(keys.filter(revoked_at=None))
        for key in usable:
            key.revoke()
        self.message_user(request, f"{len(usable)} revoked: they stop working at once.", messages.SUCCESS)
