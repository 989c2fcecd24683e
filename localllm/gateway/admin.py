"""The admin's view of models, keys and usage. Changing a model here is as strong as running code on this machine."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from asgiref.sync import async_to_sync
from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from localllm.gateway import downloads, jobs, model_files, own_files, serving
from localllm.gateway.models import (
    ApiKey,
    Download,
    Feedback,
    FileVersion,
    LanguageModel,
    PromptTemplate,
    PromptTemplateVersion,
    UsageLog,
)
from localllm.gateway.models.language_model import ModelError
from localllm.gateway.models.usage import unpack_ids
from localllm.gateway.pages.downloads import MAY_ADD
from localllm.gateway.pages.model_form import ModelForm
from localllm.gateway.registration import register
from localllm.inference import amounts
from localllm.inference.errors import InferenceError, ModelRefused

admin.site.site_header = "LocalLLM"
admin.site.site_title = "LocalLLM admin"
admin.site.index_title = "Administration"
admin.site.site_url = "/"
admin.site.unregister(Group)


class RegisterForm(forms.Form):
    path = forms.CharField(
        label="Path of a GGUF file",
        widget=forms.TextInput(attrs={"class": "vTextField", "autofocus": True, "spellcheck": "false"}),
        help_text="Under one of the folders of LOCALLLM_MODEL_ROOTS. The file stays where it is.",
    )
    name = forms.SlugField(required=False, help_text="What API clients call it. Empty: after the file.")
    make_default = forms.BooleanField(required=False, label="Make it the default model")

    def clean_path(self) -> Path:
        try:
            return own_files.allowed(self.cleaned_data["path"])
        except ModelRefused as exc:
            raise forms.ValidationError(str(exc)) from exc


MEASURED = ("predicted_bytes", "measured_bytes", "load_s", "prefill_per_s", "decode_per_s", "measured_at")


@admin.register(LanguageModel)
class LanguageModelAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("name", "title", "is_default", "is_enabled", "description", "size", "state")
    list_filter = ("is_enabled",)
    search_fields = ("name", "title", "path")
    actions = ("make_default", "load", "cancel_load", "unload", "measure", "check_files", "enable", "disable")
    form = ModelForm
    readonly_fields = (
        *("path", "state", "description", "repository", "size", "sha256", "is_default", "created_at"),
        *MEASURED,
    )
    fieldsets = (
        (None, {"fields": ("name", "title", "note", "licence", "is_enabled", "is_default", "state")}),
        ("The file", {"fields": ("path", "description", "repository", "size", "sha256", "created_at")}),
        (
            "How it is loaded",
            {
                "description": "These reach llama.cpp as they are. A model runs as this server: whoever may add "
                "or change models can do what its account can do. Changes count from the next request on.",
                "fields": (
                    ("n_ctx", "num_slots", "max_waiting"),
                    ("n_threads", "n_batch", "n_gpu_layers"),
                    ("use_mmap", "use_mlock", "numa"),
                    ("flash_attention", "kv_type"),
                    ("rope_scaling", "rope_scale"),
                    ("keep_alive_s", "is_preloaded"),
                ),
            },
        ),
        ("What loading it showed", {"fields": MEASURED}),
        (
            "Defaults of its conversations",
            {"fields": ("system_prompt", ("temperature", "top_p", "top_k", "min_p"), "max_tokens", "stop")},
        ),
    )

    @admin.display(description="size")
    def size(self, model: LanguageModel) -> str:
        return amounts.size(model.size_bytes)

    @admin.display(description="state")
    def state(self, model: LanguageModel) -> str:
        now = serving.state(model)
        return now.error if now.state == "refused" else "not loaded" if now.state == "stopped" else now.state

    def has_load_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("gateway.load_languagemodel")

    def has_delete_permission(self, request: HttpRequest, obj: LanguageModel | None = None) -> bool:
        return super().has_delete_permission(request, obj) and not (obj and _why_it_stays(obj))

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        deletable, counts, missing, protected = super().get_deleted_objects(objs, request)
        missing.discard(FileVersion._meta.verbose_name)  # they go with their model
        return deletable, counts, missing, protected + [why for model in objs if (why := _why_it_stays(model))]

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Not Django's: that one holds a transaction open, and trying a model out takes seconds."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = RegisterForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            try:
                model = async_to_sync(register)(**form.cleaned_data)
            except (InferenceError, OSError) as exc:
                form.add_error("path", str(exc))
            else:
                self.log_addition(request, model, "Registered.")
                self.message_user(request, f"{model} passed its trial and is ready.", messages.SUCCESS)
                return redirect("admin:gateway_languagemodel_change", model.pk)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Add a model",
            "form": form,
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/gateway/languagemodel/register.html", context)

    @admin.action(description="Make it the default model", permissions=["load"])
    def make_default(self, request: HttpRequest, models: QuerySet[LanguageModel]) -> None:
        if len(chosen := list(models)) != 1:
            self.message_user(request, f"Choose one model; {len(chosen)} are marked.", messages.ERROR)
            return
        try:
            async_to_sync(serving.make_default)(chosen[0])
        except InferenceError as exc:
            self.message_user(request, f"{chosen[0]} was not made the default model. {exc}", messages.ERROR)
        else:
            self.message_user(request, f"{chosen[0]} is the default model now.", messages.SUCCESS)

    @admin.action(description="Unload from memory", permissions=["load"])
    def unload(self, request: HttpRequest, models: QuerySet[LanguageModel]) -> None:
        for model in models:
            async_to_sync(serving.unload)(model)
        self.message_user(request, "Unloaded; what is answering, with its last reply.", messages.SUCCESS)

    @admin.action(description="Load into memory", permissions=["load"])
    def load(self, request: HttpRequest, models: QuerySet[LanguageModel]) -> None:
        for model in models:
            try:
                async_to_sync(serving.load)(model)
            except InferenceError as exc:
                self.message_user(request, str(exc), messages.ERROR)
            else:
                self.message_user(request, f"{model} is loading, or loaded already.", messages.SUCCESS)

    @admin.action(description="Stop loading", permissions=["load"])
    def cancel_load(self, request: HttpRequest, models: QuerySet[LanguageModel]) -> None:
        for model in models:
            try:
                async_to_sync(serving.cancel_load)(model)
            except InferenceError as exc:
                self.message_user(request, str(exc), messages.ERROR)
            else:
                self.message_user(request, f"Loading {model} was cancelled.", messages.SUCCESS)

    @admin.action(description="Measure memory and speed", permissions=["load"])
    def measure(self, request: HttpRequest, models: QuerySet[LanguageModel]) -> None:
        for model in models:
            try:
                found = async_to_sync(serving.measure)(model)
            except InferenceError as exc:
                self.message_user(request, str(exc), messages.ERROR)
            else:
                self.message_user(
                    request,
                    f"{model} takes {amounts.size(found.measured_bytes)}, reads {found.prefill_per_s:.0f} and writes "
                    f"{found.decode_per_s:.0f} tokens a second.",
                    messages.SUCCESS,
                )

    @admin.action(description="Check the file against its SHA-256", permissions=["change"])
    def check_files(self, request: HttpRequest, models: QuerySet[LanguageModel]) -> None:
        for model in models:
            try:
                is_sound = model.check_file()
            except OSError as exc:
                self.message_user(request, f"The file of {model} cannot be read: {exc}.", messages.ERROR)
                continue
            if is_sound:
                self.message_user(request, f"The file of {model} is the one that was registered.", messages.SUCCESS)
            else:
                self.message_user(
                    request,
                    f"The file of {model} is not the one that was registered: its SHA-256 is another. Put the old "
                    "one back, or register it again.",
                    messages.ERROR,
                )

    @admin.action(description="Enable", permissions=["change"])
    def enable(self, request: HttpRequest, models: QuerySet[LanguageModel]) -> None:
        self.message_user(request, f"{models.update(is_enabled=True)} enabled.", messages.SUCCESS)

    @admin.action(description="Disable", permissions=["change"])
    def disable(self, request: HttpRequest, models: QuerySet[LanguageModel]) -> None:
        num = models.filter(is_default=False).update(is_enabled=False)
        self.message_user(request, f"{num} disabled. The default model stays enabled.", messages.SUCCESS)

    def delete_model(self, request: HttpRequest, obj: LanguageModel) -> None:
        # Django holds a transaction open here, in which the verb that deletes the row too would wait for itself.
        paths = list(obj.files.values_list("path", flat=True))
        super().delete_model(request, obj)
        transaction.on_commit(partial(async_to_sync(model_files.clear_away), obj, paths))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[LanguageModel]) -> None:
        for model in queryset:
            async_to_sync(model_files.remove)(model)


def _why_it_stays(model: LanguageModel) -> str:
    try:
        model.check_may_go()
    except ModelError as exc:
        return str(exc)
    return ""


@admin.register(FileVersion)
class FileVersionAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Files that models are or were. They come by registering, downloading and replacing."""

    list_display = ("name", "model", "is_current", "description", "size", "created_at")
    list_filter = ("model",)
    search_fields = ("name", "path", "sha256", "model__name")
    list_select_related = ("model",)
    actions = ("serve", "remove")
    fields = ("model", "name", "is_current", "path", "description", "repository", "size", "sha256", "created_at")
    readonly_fields = fields

    @admin.display(description="serves", boolean=True)
    def is_current(self, file: FileVersion) -> bool:
        return file.is_current

    @admin.display(description="size")
    def size(self, file: FileVersion) -> str:
        return amounts.size(file.size_bytes)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: FileVersion | None = None) -> bool:
        """By the action only, which takes care of the file."""
        return False

    @admin.action(description="Let its model answer with it (roll back)", permissions=["change"])
    def serve(self, request: HttpRequest, files: QuerySet[FileVersion]) -> None:
        for file in files:
            try:
                async_to_sync(model_files.roll_back)(file.model, file)
            except InferenceError as exc:
                self.message_user(request, str(exc), messages.ERROR)
            else:
                self.message_user(request, f"{file.model} answers with {file} from now on.", messages.SUCCESS)

    @admin.action(description="Remove", permissions=["change"])
    def remove(self, request: HttpRequest, files: QuerySet[FileVersion]) -> None:
        for file in files:
            try:
                async_to_sync(model_files.remove_version)(file)
            except InferenceError as exc:
                self.message_user(request, str(exc), messages.ERROR)
            else:
                self.message_user(request, f"{file} is no version of {file.model} any more.", messages.SUCCESS)


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


@admin.register(UsageLog)
class UsageLogAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
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

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: UsageLog | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: UsageLog | None = None) -> bool:
        return False


@admin.register(Feedback)
class FeedbackAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("created_at", "user", "value", "note", "message_id")
    list_filter = ("value", "created_at", "user")
    search_fields = ("=message_id", "=conversation_id", "note", "user__username")
    list_select_related = ("user",)
    date_hierarchy = "created_at"

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Feedback | None = None) -> bool:
        return False


class PromptTemplateVersionInline(admin.StackedInline):  # type: ignore[type-arg]
    model = PromptTemplateVersion
    fk_name = "template"
    fields = readonly_fields = ("number", "created_by", "created_at", "note", "text")
    extra = 0

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(PromptTemplate)
class PromptTemplateAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """To be read, and to find the pages where prompts are written, tried and taken back."""

    list_display = ("name", "family", "use_case", "current", "is_shipped", "deleted_at")
    list_filter = ("use_case", "family", "is_shipped")
    search_fields = ("name", "family", "description", "versions__text")
    list_select_related = ("current__template",)
    inlines = (PromptTemplateVersionInline,)

    def view_on_site(self, template: PromptTemplate) -> str:
        return template.get_absolute_url()

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: PromptTemplate | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: PromptTemplate | None = None) -> bool:
        return False


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
