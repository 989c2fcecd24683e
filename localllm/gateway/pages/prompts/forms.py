"""What the pages of prompts take from forms."""

from __future__ import annotations

from typing import Any, cast

from django import forms
from django.contrib.auth.models import User
from django.db import transaction

from localllm.gateway.models import PromptTemplate, PromptTemplateVersion
from localllm.gateway.models.experiment import METRICS
from localllm.gateway.models.prompt_template import USE_CASES
from localllm.gateway.models.trial import MAX_ANSWERS
from localllm.gateway.pages.request import unix_lines
from localllm.inference.prompt_template import Template, TemplateError


class PromptTemplateForm(forms.ModelForm):  # type: ignore[type-arg]
    """A template and what its next version says. What it is for stays as it was first."""

    text = forms.CharField(
        label="Prompt",
        strip=False,
        widget=forms.Textarea(attrs={"rows": 14, "spellcheck": "false", "class": "mono"}),
        help_text="A variable is a name between two pairs of braces, such as {{ question }}. There is no logic.",
    )
    note = forms.CharField(
        label="What changed", max_length=200, required=False, help_text="For those who compare versions later."
    )
    is_current = forms.BooleanField(label="Ask with it from now on", required=False, initial=True)

    class Meta:
        model = PromptTemplate
        fields = ("use_case", "name", "family", "description")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_new = self.instance._state.adding
        if not self.is_new:
            self.initial.setdefault("text", self.instance.current_version.text)
            for name in ("use_case", "name", "family"):
                self.fields[name].disabled = True

    def clean_text(self) -> str:
        text: str = unix_lines(self.cleaned_data["text"]).strip("\n")
        try:
            template = Template(text)
            if use_case := USE_CASES.get(self.cleaned_data.get("use_case", "")):
                template.check(use_case.samples)
        except TemplateError as exc:
            raise forms.ValidationError(str(exc)) from None
        return text

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        name, family = cleaned.get("name"), cleaned.get("family", "")
        if self.is_new and name and PromptTemplate.objects.filter(name=name, family=family).exists():
            self.add_error("name", "There is one of this name already, in use or among the deleted ones.")
        elif self.is_new and name and family:
            base = PromptTemplate.objects.in_use().filter(name=name, family="").first()
            if base is None:
                self.add_error("family", f"There is no template “{name}” for all models yet. Make that one first.")
            elif base.use_case != cleaned.get("use_case"):
                self.add_error("use_case", f"The one for all models is for: {base.get_use_case_display()}. Take that.")
        return cleaned

    def add_version(self, author: User) -> PromptTemplateVersion | None:
        """Save all of it; None when the text is that of the current version."""
        text, note = self.cleaned_data["text"], self.cleaned_data["note"]
        with transaction.atomic():
            template = cast(PromptTemplate, self.save())
            if template.current is not None and template.current.text == text:
                return None
            version = template.add_version(text, author=author, note=note)
            if template.current is None or self.cleaned_data["is_current"]:
                template.make_current(version)
        return version


class ExperimentForm(forms.Form):
    """How success is told, and the share of each version, in percent."""

    metric = forms.ChoiceField(
        label="Success is told by", choices=[(name, metric.title) for name, metric in METRICS.items()]
    )

    def __init__(self, *args: Any, versions: list[PromptTemplateVersion], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.versions = versions
        for version in versions:
            self.fields[f"share-{version.number}"] = forms.IntegerField(
                label=f"Version {version.number}", min_value=0, max_value=100, required=False
            )

    @property
    def shares(self) -> dict[PromptTemplateVersion, int]:
        given = ((version, self.cleaned_data[f"share-{version.number}"]) for version in self.versions)
        return {version: share for version, share in given if share}


class TrialForm(forms.Form):
    """The version to be tried, and on how many of the last prompts."""

    version = forms.ModelChoiceField(PromptTemplateVersion.objects.none(), label="Version", empty_label=None)
    number = forms.IntegerField(
        label="Prompts", min_value=1, max_value=MAX_ANSWERS, initial=20, help_text="The last ones that you may see."
    )

    def __init__(self, *args: Any, template: PromptTemplate, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        version = cast(forms.ModelChoiceField, self.fields["version"])  # type: ignore[type-arg]
        version.queryset = template.versions.select_related("template")
        version.initial = template.versions.first()
