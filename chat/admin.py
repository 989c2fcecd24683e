"""Conversations as an admin sees them: who, when, how; the text can be read and not changed."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Count, QuerySet
from django.http import HttpRequest

from chat.models import Conversation, Message, Summary
from localllm.gateway.admin.read_only import ReadOnly


class MessageInline(ReadOnly, admin.StackedInline):  # type: ignore[type-arg]
    model = Message
    fields = ("role", "text", "status", "finish_reason", "error", "created_at")
    ordering = ("created_at",)
    can_delete = False
    show_change_link = True
    extra = 0


class SummaryInline(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    model = Summary
    fields = ("created_at", "num_messages", "tokens_before", "tokens_after", "model_name", "edited_by", "is_undone")
    can_delete = False
    show_change_link = True
    extra = 0


@admin.register(Conversation)
class ConversationAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("__str__", "owner", "model", "num_messages", "updated_at", "folder", "is_pinned", "is_archived")
    list_filter = ("is_archived", "updated_at", "model", "owner", "folder")
    search_fields = ("=id", "title", "owner__username")
    list_select_related = ("owner", "model")
    date_hierarchy = "updated_at"
    exclude = ("leaf",)
    inlines = (SummaryInline, MessageInline)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Conversation]:
        conversations: QuerySet[Conversation] = super().get_queryset(request)
        return conversations.annotate(num_messages=Count("messages"))

    @admin.display(description="messages", ordering="num_messages")
    def num_messages(self, conversation: Any) -> int:
        return int(conversation.num_messages)


@admin.register(Message)
class MessageAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("__str__", "conversation", "role", "status", "model_name", "completion_tokens", "created_at")
    list_filter = ("role", "status", "created_at", "model_name")
    search_fields = ("=id", "=conversation__id", "text", "conversation__owner__username")
    list_select_related = ("conversation",)
    date_hierarchy = "created_at"
    ordering = ("-created_at",)
    exclude = ("html", "cid", "parent")

    def has_delete_permission(self, request: HttpRequest, obj: Message | None = None) -> bool:
        # Only along with its conversation or its owner: a tree with a hole is no conversation.
        match = request.resolver_match
        return match is not None and not str(match.url_name).startswith("chat_message_")


@admin.register(Summary)
class SummaryAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """Compressed history: what a summary stands for, what it saved, who or what wrote it."""

    list_display = (
        "created_at",
        "conversation",
        "num_messages",
        "tokens_before",
        "tokens_after",
        "saved",
        "model_name",
        "template_version",
        "edited_by",
        "is_undone",
    )
    list_filter = ("is_undone", "created_at", "model_name", "edited_by")
    search_fields = ("=conversation__id", "conversation__title", "conversation__owner__username", "text")
    list_select_related = ("conversation", "template_version__template", "edited_by")
    date_hierarchy = "created_at"
    exclude = ("data",)

    @admin.display(description="saving")
    def saved(self, summary: Summary) -> str:
        return f"{summary.saving:.0%}"

    def has_delete_permission(self, request: HttpRequest, obj: Summary | None = None) -> bool:
        # Only along with its conversation: later summaries are built on it.
        match = request.resolver_match
        return match is not None and not str(match.url_name).startswith("chat_summary_")
