"""What the chat pages take from forms."""

from __future__ import annotations

from typing import Any, cast

from django import forms
from django.core.validators import MaxValueValidator, MinValueValidator

from chat.attachments import FileChoice
from chat.models import Conversation
from localllm.gateway.models import LanguageModel, PromptTemplate
from localllm.inference.prompt_template import Template

# Field: least, most, step, and what it does in a line.
SAMPLING: dict[str, tuple[float, float | None, str, str]] = {
    "temperature": (0, 2, "0.05", "0 always takes the likeliest word; higher is freer."),
    "top_p": (0, 1, "0.01", "Only the likeliest words that add up to this share."),
    "top_k": (0, 1000, "1", "Only this many of the likeliest words; 0: all."),
    "min_p": (0, 1, "0.01", "Only words at least this likely beside the best one."),
    "repeat_penalty": (0.5, 2, "0.01", "Above 1 makes repetition less likely."),
    "max_tokens": (1, 1_000_000, "1", "How long an answer may get."),
    "seed": (0, 2**31 - 1, "1", "The same seed tends to give the same answer."),
}


class NewChatForm(forms.Form):
    """The first message of a conversation."""

    text = forms.CharField(strip=False, error_messages={"required": "The message is empty. Write something first."})
    cid = forms.CharField(max_length=64)
    model = forms.ModelChoiceField(LanguageModel.objects.answering(), to_field_name="name", required=False)
    schema = forms.UUIDField(required=False, error_messages={"invalid": "This is no schema. Choose one, or none."})

    attachments: list[FileChoice]

    def clean(self) -> None:
        """Files come as three fields each, in the same order."""
        fields = (self.data.getlist(name) for name in ("file", "mode", "cut_at"))  # type: ignore[attr-defined]
        try:
            self.attachments = [FileChoice.parse(*each) for each in zip(*fields, strict=True)]
        except ValueError:
            raise forms.ValidationError("The attached files could not be made out. Attach them again.") from None


class RenameForm(forms.ModelForm):  # type: ignore[type-arg]
    title = forms.CharField(max_length=200, label="Name", widget=forms.TextInput(attrs={"autofocus": True}))

    class Meta:
        model = Conversation
        fields = ("title",)


class SettingsForm(forms.ModelForm):  # type: ignore[type-arg]
    """Settings of one conversation; an empty field means: as the model has it, shown as its placeholder."""

    class Meta:
        model = Conversation
        fields = ("template", "system_prompt", "compress_at", *SAMPLING)

    def __init__(self, data: Any, *, instance: Conversation, inherits: LanguageModel | None) -> None:
        super().__init__(data, instance=instance, auto_id="setting-%s")
        template = cast(forms.ModelChoiceField, self.fields["template"])  # type: ignore[type-arg]
        template.queryset = PromptTemplate.objects.in_use().filter(use_case="chat", family="").exclude(name="chat")
        template.empty_label, template.label = "Default", "System prompt template"
        prompt = inherits.system_prompt if inherits else ""
        self.fields["system_prompt"].widget.attrs |= {"rows": 4, "placeholder": prompt or "None"}
        self.fields["compress_at"].required = False  # not given: as it is
        self.fields["compress_at"].help_text = "Then they stand there as key facts; nothing is deleted."
        for name, (least, most, step, hint) in SAMPLING.items():
            field = self.fields[name]
            field.help_text = hint
            field.validators += [MinValueValidator(least)] + ([MaxValueValidator(most)] if most is not None else [])
            field.widget.attrs |= {"min": least, "max": most, "step": step, "inputmode": "decimal"}
            field.widget.attrs["placeholder"] = _inherited(inherits, name)

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        template = cleaned.get("template")
        if (
            template
            and cleaned.get("system_prompt")
            and "system_prompt" not in Template(template.current.text).variables
        ):
            self.add_error(
                "system_prompt",
                f"The template “{template}” has no place for a text of your own. Clear it, or choose another template.",
            )
        return cleaned


def _inherited(model: LanguageModel | None, name: str) -> str:
    without = {"repeat_penalty": "1.0", "max_tokens": "What fits", "seed": "Random"}
    value = getattr(model, name, None)
    return without.get(name, "") if value is None else f"{value:g}"
