"""What a person may set of a model, on its page and in the admin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django import forms

from localllm.gateway.api.chat_request import MAX_STOP_CHARS, MAX_STOPS
from localllm.gateway.models import LanguageModel
from localllm.gateway.pages.account import account_of
from localllm.inference import amounts
from localllm.inference.engine.gguf import MAX_CONTEXT
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import ModelRefused

NAMES = ("title", "name", "note", "licence", "is_enabled")
LOADING = EngineSettings.__struct_fields__
STAYING = ("keep_alive_s", "is_preloaded")
ANSWERS = ("system_prompt", "temperature", "top_p", "top_k", "min_p", "max_tokens", "stop")
# Field: least and most.
RANGES: dict[str, tuple[float, float]] = {
    "n_ctx": (64, MAX_CONTEXT),
    "num_slots": (1, 64),
    "n_batch": (32, 8192),
    "n_threads": (0, 512),
    "n_gpu_layers": (-1, 1000),
    "rope_scale": (1, 64),
    "max_waiting": (1, 10_000),
    "keep_alive_s": (0, 30 * 24 * 3600),
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (0, 1000),
    "min_p": (0, 1),
    "max_tokens": (1, 1_000_000),
}


class LinesField(forms.CharField):
    """A list of strings, one on each line."""

    widget = forms.Textarea

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list) else value

    def clean(self, value: Any) -> Any:
        return [line for line in super().clean(value).splitlines() if line.strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool((initial or []) != (data or "").splitlines())


class ModelForm(forms.ModelForm):  # type: ignore[type-arg]
    stop = LinesField(
        label="Stop strings",
        required=False,
        strip=False,
        widget=forms.Textarea(attrs={"rows": 2, "spellcheck": "false"}),
        help_text="An answer ends before one of them. One on each line.",
    )

    class Meta:
        model = LanguageModel
        fields = (*NAMES, *LOADING, *STAYING, *ANSWERS)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, (least, most) in RANGES.items():
            self.fields[name].validators.append(_between(least, most))
            self.fields[name].widget.attrs |= {"min": least, "max": most, "inputmode": "decimal"}
            if isinstance(self.fields[name], forms.FloatField):
                self.fields[name].widget.attrs["step"] = "any"
        self.fields["system_prompt"].widget.attrs["rows"] = 4

    @property
    def names(self) -> list[forms.BoundField]:
        return [self[name] for name in NAMES]

    @property
    def loading(self) -> list[forms.BoundField]:
        """What is on or off comes last, in a row of its own."""
        fields = [self[name] for name in (*LOADING, *STAYING)]
        return sorted(fields, key=lambda field: isinstance(field.field, forms.BooleanField))

    @property
    def answers(self) -> list[forms.BoundField]:
        return [self[name] for name in ANSWERS]

    @property
    def has_changed_worker(self) -> bool:
        return not set(LOADING).isdisjoint(self.changed_data)

    @property
    def engine_settings(self) -> EngineSettings:
        """As they are filled in. Raises ValueError for those that contradict each other."""
        return EngineSettings(**{name: self.cleaned_data[name] for name in LOADING})

    @property
    def faults(self) -> list[str]:
        return [f"{self[name].label}: {error}" for name, errors in self.errors.items() for error in errors]

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if name == "default":
            raise forms.ValidationError("“default” always means the default model. Choose another name.")
        return name

    def clean_is_enabled(self) -> bool:
        if self.instance.is_default and not self.cleaned_data["is_enabled"]:
            raise forms.ValidationError("The default model stays enabled. Make another one the default first.")
        return bool(self.cleaned_data["is_enabled"])

    def clean_stop(self) -> list[str]:
        stops: list[str] = self.cleaned_data["stop"]
        if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARS for stop in stops):
            raise forms.ValidationError(
                f"These are {len(stops)} strings; give at most {MAX_STOPS}, of {MAX_STOP_CHARS} characters each."
            )
        return stops

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if not self.errors:
            self._check_loading()
        return cleaned

    def _check_loading(self) -> None:
        try:
            settings = self.engine_settings
        except ValueError as exc:
            name = str(exc).partition(" ")[0]
            self.add_error(name if name in LOADING else None, str(exc))
            return
        if settings != self.instance.engine_settings:
            self._check_memory(settings)

    def _check_memory(self, settings: EngineSettings) -> None:
        """What can never be loaded here cannot be saved; what has no room beside other models can."""
        try:
            fit = account_of(self.instance, settings).fit
        except ModelRefused:
            return  # the file is gone or broken: that is said where it is loaded
        if fit.need.held_bytes > fit.machine.total_bytes:
            self.add_error(
                "n_ctx",
                f"With these settings it would hold {amounts.size(fit.need.held_bytes)}, and this machine has "
                f"{amounts.size(fit.machine.total_bytes)} of memory. Make the window smaller, or use fewer slots.",
            )


def _between(least: float, most: float) -> Callable[[float], None]:
    def check(value: float) -> None:
        if not least <= value <= most:
            raise forms.ValidationError(f"It is {value:,}; it must be from {least:,} to {most:,}.")

    return check
