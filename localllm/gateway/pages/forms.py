"""What the pages of models take from a browser."""

from __future__ import annotations

from typing import Any

from django import forms

from localllm.gateway.models import LanguageModel
from localllm.inference.engine.gguf import MAX_CONTEXT

MAX_SLOTS = 64


class LoadingForm(forms.Form):
    """How a file that is not here yet would be loaded."""

    n_ctx = forms.IntegerField(label="Context window", min_value=1, max_value=MAX_CONTEXT, required=False)
    num_slots = forms.IntegerField(label="Conversations", min_value=1, max_value=MAX_SLOTS, required=False)
    kv_type = forms.ChoiceField(label="KV cache", required=False)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["kv_type"].choices = LanguageModel._meta.get_field("kv_type").choices  # type: ignore[attr-defined]

    @property
    def given(self) -> dict[str, Any]:
        """Of a form that was checked: what was said. The rest is as usual."""
        return {name: value for name, value in self.cleaned_data.items() if value}

    @property
    def fault(self) -> str:
        """What is wrong, in words; empty where nothing is."""
        return " ".join(f"{self.fields[name].label}: {errors[0]}" for name, errors in self.errors.items())
