"""Models and the versions of their files. Changing one here is as strong as running code on this machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from asgiref.sync import async_to_sync
from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse

from localllm.gateway import model_files, own_files, serving
from localllm.gateway.models import FileVersion, LanguageModel
from localllm.gateway.models.language_model import ModelError
from localllm.gateway.pages.model_form import ModelForm
from localllm.gateway.registration import register
from localllm.inference import amounts
from localllm.inference.errors import InferenceError, ModelRefused


class RegisterForm(forms.Form):
    path = forms.CharField(
        label="Path of a GGUF file",
        widget=forms.TextInput(attrs={"class": "vTextField", "autofocus": True, "spellcheck": "false"}),
        help_text="Under one of the folders of LOCALLLM_MODEL_ROOTS. The file stays where it is.",
    )
    name = forms.CharField(required=False, max_length=100, help_text="What API clients call it. Empty: after the file.")
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
                model.check_file()
            except ModelRefused as exc:
                self.message_user(request, str(exc), messages.ERROR)
            else:
                self.message_user(request, f"The file of {model} is the one that was registered.", messages.SUCCESS)

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
