"""The usage log and the thumbs, to be read and filtered."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from localllm.gateway.admin.read_only import Kept, ReadOnly
from localllm.gateway.models import Feedback, UsageLog
from localllm.gateway.models.usage import unpack_ids


@admin.register(UsageLog)
class UsageLogAdmin(Kept, admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = (
        "created_at", "source", "user", "model_name", "prompt_tokens", "reused_tokens", "completion_tokens",
        "queue_ms", "ttft_ms", "duration_ms", "speed", "finish_reason", "feedback", "page",
    )  # fmt: skip
    list_filter = ("source", "finish_reason", "model_name", "created_at", "user")
    search_fields = ("=id", "=conversation_id", "user__username", "model_name", "error", "model_sha256")
    date_hierarchy = "created_at"
    list_select_related = ("user",)
    exclude = ("messages", "prompt_ids", "output_ids")
    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[UsageLog]:
        rows: QuerySet[UsageLog] = super().get_queryset(request)
        given = Feedback.objects.filter(message_id=OuterRef("message_id"))
        return rows.annotate(feedback_value=Subquery(given.values("value")[:1]))

    @admin.display(description="feedback", ordering="feedback_value")
    def feedback(self, row: Any) -> str:
        return {Feedback.UP: "👍", Feedback.DOWN: "👎"}.get(row.feedback_value, "–")

    @admin.display(description="tokens/s")
    def speed(self, row: UsageLog) -> str:
        return f"{row.tokens_per_second:.1f}" if row.tokens_per_second else "–"

    @admin.display(description="page")
    def page(self, row: UsageLog) -> SafeString:
        return format_html('<a href="{}">Text and replay</a>', row.get_absolute_url())

    @admin.display(description="token ids")
    def token_ids(self, row: UsageLog) -> str:
        prompt, output = unpack_ids(bytes(row.prompt_ids)), unpack_ids(bytes(row.output_ids))
        return f"prompt {list(prompt)}, output {list(output)}"

    def get_readonly_fields(self, request: HttpRequest, obj: UsageLog | None = None) -> list[str]:
        names = [field.name for field in self.opts.fields if field.name not in self.exclude]
        return [*names, "speed", "token_ids", "feedback", "page"]


@admin.register(Feedback)
class FeedbackAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("created_at", "user", "value", "note", "message_id")
    list_filter = ("value", "created_at", "user")
    search_fields = ("=message_id", "=conversation_id", "note", "user__username")
    list_select_related = ("user",)
    date_hierarchy = "created_at"
