"""What the page of a new batch takes: a schema, a model, inputs, and how a file is to be read."""

from __future__ import annotations

import hashlib
from typing import Any

from django import forms
from django.contrib.auth.models import User

from localllm.gateway.models import LanguageModel
from schemas_app.batches.inputs import DELIMITERS, InputError, Table, checked, read, split
from schemas_app.models import Schema

MAX_PASTED = 500_000  # characters; more than Django takes of a form that is not a file


class BatchForm(forms.Form):
    """Valid when there is something to start: `inputs` and `source`, and `table` where a file was read."""

    schema = forms.ModelChoiceField(Schema.objects.none(), to_field_name="slug", empty_label=None)
    model = forms.ModelChoiceField(LanguageModel.objects.answering(), to_field_name="name", empty_label=None)
    kind = forms.ChoiceField(
        choices=[("paste", "Paste text"), ("file", "Upload a file")], widget=forms.RadioSelect, initial="paste"
    )
    text = forms.CharField(
        label="Inputs",
        required=False,
        strip=False,
        max_length=MAX_PASTED,
        widget=forms.Textarea(attrs={"rows": 8, "spellcheck": "false"}),
    )
    by = forms.ChoiceField(
        label="One input is",
        choices=[("line", "a line"), ("block", "a block between blank lines")],
        widget=forms.RadioSelect,
        initial="line",
    )
    file = forms.FileField(
        label="CSV or JSONL file",
        required=False,
        allow_empty_file=True,
        widget=forms.FileInput(attrs={"accept": ".csv,.tsv,.txt,.jsonl,.ndjson,text/csv"}),
    )

    # How the file is read. They are offered with the preview, and mean nothing for another file.
    digest = forms.CharField(required=False)
    columns = forms.Field(required=False, widget=forms.SelectMultiple)
    delimiter = forms.ChoiceField(required=False, choices=[(name, name) for name in DELIMITERS])
    header = forms.ChoiceField(required=False, choices=[("yes", "names of columns"), ("no", "data already")])

    def __init__(self, *args: Any, user: User, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.label_suffix = ""
        schemas = Schema.objects.visible_to(user).filter(versions__isnull=False).distinct()
        self.fields["schema"].queryset = schemas  # type: ignore[attr-defined]
        self.inputs: list[str] = []
        self.source = ""
        self.table: Table | None = None
        self.file_digest = ""

    @property
    def chosen_columns(self) -> list[str]:
        return self.cleaned_data.get("columns") or [] if self.cleaned_data.get("digest") == self.file_digest else []

    def clean(self) -> dict[str, Any]:
        try:
            if self.cleaned_data.get("kind") == "file":
                self._read_file()
            else:
                self.source = "pasted text"
                self.inputs = checked(split(self.cleaned_data.get("text", ""), self.cleaned_data.get("by", "line")))
        except InputError as exc:
            raise forms.ValidationError(str(exc)) from exc
        return self.cleaned_data

    def _read_file(self) -> None:
        file = self.cleaned_data.get("file")
        if file is None:
            raise InputError("No file is chosen yet. Choose a CSV or JSONL file.")
        data = file.read()
        self.source, self.file_digest = file.name, hashlib.sha256(data).hexdigest()
        is_known = self.cleaned_data.get("digest") == self.file_digest
        header = self.cleaned_data.get("header") if is_known else ""
        self.table = read(
            data,
            file.name,
            delimiter=self.cleaned_data.get("delimiter", "") if is_known else "",
            has_header=header == "yes" if header else None,
        )
        self.inputs = checked(self.table.inputs(self.chosen_columns))
