"""What the editor of schemas takes, in the app and in the admin. A schema that is refused cannot be saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from asgiref.sync import async_to_sync
from django import forms
from django.contrib.auth.models import User
from django.http import QueryDict
from django.template.loader import render_to_string
from django.utils.safestring import SafeString

from localllm.gateway.pages.request import unix_lines
from localllm.gateway.structured import compiler
from localllm.inference.json_schema.document import Document
from localllm.inference.json_schema.errors import SchemaRefused
from localllm.inference.json_schema.reading import NotJson, loads
from localllm.inference.json_schema.validator import Validator
from localllm.inference.prompt_template import Template, TemplateError
from schemas_app.models import CONTENT, INPUT, Schema, SchemaVersion
from schemas_app.report import Problem

BLANK = '{\n  "type": "object",\n  "properties": {},\n  "required": [],\n  "additionalProperties": false\n}'
MAX_EXAMPLES = 20


class ExamplesWidget(forms.Widget):
    """Rows of an input and an output each, under the names `…-input` and `…-output`.

    Rows come and go by script, or there are always `num_empty` more to fill in.
    """

    def __init__(self, num_empty: int = 0) -> None:
        super().__init__()
        self.num_empty = num_empty

    def render(self, name: str, value: Any, attrs: Any = None, renderer: Any = None) -> SafeString:
        examples = [*(value or []), *[{}] * self.num_empty]
        context = {"name": name, "examples": examples, "is_fixed": self.num_empty > 0}
        return render_to_string("schemas/_examples.html", context)

    def value_from_datadict(self, data: Mapping[str, Any], files: Any, name: str) -> list[dict[str, str]]:
        lists = [data.getlist(f"{name}-{part}") for part in ("input", "output")] if isinstance(data, QueryDict) else []
        pairs = zip(*lists, strict=False) if lists else []
        return [
            {"input": unix_lines(asked).strip(), "output": unix_lines(answered).strip()}
            for asked, answered in pairs
            if asked.strip() or answered.strip()
        ]

    def value_omitted_from_data(self, data: Mapping[str, Any], files: Any, name: str) -> bool:
        return False


class ExamplesField(forms.Field):
    widget = ExamplesWidget

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool((initial or []) != (data or []))


class SchemaForm(forms.ModelForm):  # type: ignore[type-arg]
    """A schema and what its next version says."""

    text = forms.CharField(
        label="JSON Schema",
        initial=BLANK,
        strip=False,
        widget=forms.Textarea(attrs={"rows": 20, "spellcheck": "false"}),
    )
    prompt_template = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs={"rows": 4}),
        help_text="What the model is asked. {{ input }} stands for the text that data are taken from; alone if empty.",
    )
    temperature = forms.FloatField(
        min_value=0, max_value=2, initial=0.3, help_text="0 always takes the likeliest word; higher is freer."
    )
    max_tokens = forms.IntegerField(
        label="Length limit", min_value=1, max_value=1_000_000, initial=2048, help_text="Tokens of an answer, at most."
    )
    examples = ExamplesField(required=False, help_text="Shown to the model before the question.")

    class Meta:
        model = Schema
        fields = ("name", "slug", "description")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if (last := self.instance.versions.first()) is not None:
            self.initial = last.content | self.initial
        self.fields["slug"].required = False
        self.fields["slug"].label = "API name"
        self.fields["slug"].help_text = "What API clients call it. After the name if empty."
        self.fields["description"].widget.attrs["rows"] = 2

    def clean_text(self) -> str:
        text = unix_lines(self.cleaned_data["text"])
        try:
            async_to_sync(compiler.compile)(text)
        except SchemaRefused as exc:
            raise forms.ValidationError(str(Problem.of(text, exc))) from None
        return text

    def clean_prompt_template(self) -> str:
        text = unix_lines(self.cleaned_data["prompt_template"]).strip()
        try:
            template = Template(text)
            template.check([INPUT])
        except TemplateError as exc:
            raise forms.ValidationError(str(exc)) from None
        if text and INPUT not in template.variables:
            raise forms.ValidationError(
                "It says nowhere where the text goes. Write {{ input }} there, or leave it empty."
            )
        return text

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if "text" in cleaned:
            for problem in _problems(cleaned["text"], cleaned.get("examples") or []):
                self.add_error("examples", problem)
        if not cleaned.get("slug") and "slug" not in self.errors:
            cleaned["slug"] = self.instance.slug
        return cleaned

    def save(self, commit: bool = True) -> Schema:
        """In the transaction that stores it, so that of two schemas of one name each finds a slug."""
        self.instance.slug = self.instance.slug or Schema.objects.free_slug(self.instance.name)
        return cast(Schema, super().save(commit))

    def add_version(self, author: User) -> SchemaVersion | None:
        """The next version of the saved schema; None when it would say the same as the last."""
        content = {name: self.cleaned_data[name] for name in CONTENT}
        last = self.instance.versions.first()
        if last is not None and last.content == content:
            return None
        return cast(Schema, self.instance).add_version(author=author, **content)


def _problems(text: str, examples: list[dict[str, str]]) -> list[str]:
    """What is wrong with examples, by number."""
    validator = Validator(Document(text))
    problems = [f"These are {len(examples)} examples; keep {MAX_EXAMPLES}."] if len(examples) > MAX_EXAMPLES else []
    for number, example in enumerate(examples[:MAX_EXAMPLES], start=1):
        if not example["input"]:
            problems.append(f"Example {number} has no input. Write the text that its output is taken from.")
        try:
            wrong = validator.violations(loads(example["output"]), limit=1)
        except NotJson as exc:
            problems.append(f"The output of example {number} is not JSON: {exc}.")
        else:
            problems += [
                f"The output of example {number} breaks the schema at {each.path or 'the top'}: {each.message}."
                for each in wrong
            ]
    return problems
