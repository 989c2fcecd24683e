"""Trying a schema: text in, and the data as they are written, then what vouches for them. Results are kept.

The answer streams as server-sent events: `stage`, where it stands in words; `html`, the result so far, at
most every TICK_S; and with the last one `entry`, its line in the list of those kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast
from uuid import UUID

import msgspec
from django import forms
from django.contrib.auth.models import User
from django.http import HttpResponse, QueryDict
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, render
from django.template.loader import render_to_string
from django.views.decorators.http import require_GET, require_POST

from localllm.gateway import data_view, database, structured
from localllm.gateway.api import sse
from localllm.gateway.api.errors import ApiError
from localllm.gateway.completions import Asker
from localllm.gateway.models import LanguageModel
from localllm.gateway.pages.request import Request, unix_lines
from localllm.inference.errors import ProviderError
from localllm.inference.json_schema.errors import SchemaRefused
from localllm.inference.json_schema.reading import loads
from localllm.inference.structured import Attempt, FieldReport, StructuredError, StructuredResult
from localllm.inference.types import Chunk, Event, Loading, Message, Prefill, Waiting
from schemas_app.models import Schema, SchemaVersion, TryOut

TICK_S = 0.15  # how often what is being written is shown
LISTED = 20  # results shown on the page
MAX_VIOLATIONS = 10


class VersionField(forms.ModelChoiceField):  # type: ignore[type-arg]  # generic in the stubs alone
    def label_from_instance(self, version: SchemaVersion) -> str:
        return f"v{version.number}"


class TryForm(forms.Form):
    input = forms.CharField(label="Text", strip=False, widget=forms.Textarea({"rows": 7}))
    version = VersionField(SchemaVersion.objects.none(), to_field_name="number", empty_label=None)
    beside = VersionField(SchemaVersion.objects.none(), to_field_name="number", required=False, empty_label="nothing")
    model = forms.ModelChoiceField(LanguageModel.objects.answering(), to_field_name="name", empty_label=None)

    def __init__(self, schema: Schema, data: QueryDict | None = None, initial: dict[str, Any] | None = None) -> None:
        super().__init__(data, initial=initial, label_suffix="")
        for name in ("version", "beside"):
            cast(VersionField, self.fields[name]).queryset = schema.versions.select_related("schema")

    def clean_input(self) -> str:
        text = unix_lines(self.cleaned_data["input"])
        if not text.strip():
            raise forms.ValidationError("There is nothing but blanks. Write or paste some text.")
        return text


# Pages


@require_GET
def try_it(request: Request, schema_id: UUID) -> HttpResponse:
    schema = get_object_or_404(Schema.objects.visible_to(request.user), pk=schema_id)
    return render(request, "schemas/try_it.html", {"schema": schema, **context(request.user, schema)})


def context(user: User, schema: Schema) -> dict[str, Any]:
    """What the panel `schemas/_try_it.html` needs beside `schema`."""
    default = LanguageModel.objects.filter(is_default=True).first()
    return {
        "try_form": TryForm(schema, initial={"model": default.name if default else None}),
        "try_outs": TryOut.objects.owned_by(user)
        .filter(version__schema=schema)
        .select_related("version__schema")[:LISTED],
    }


@require_GET
def try_out(request: Request, try_out_id: UUID) -> HttpResponse:
    return HttpResponse(_kept(_own(request, try_out_id)))


@require_POST
def delete(request: Request, try_out_id: UUID) -> HttpResponse:
    _own(request, try_out_id).delete()
    return HttpResponse(status=204)


def _own(request: Request, try_out_id: UUID) -> TryOut:
    return get_object_or_404(TryOut.objects.owned_by(request.user).select_related("version__schema"), pk=try_out_id)


def _kept(kept: TryOut) -> str:
    reports = msgspec.convert(kept.account["fields"], dict[str, FieldReport])
    return render_to_string(
        "schemas/_try_out.html",
        {
            "kept": kept,
            "version": kept.version,
            "input": kept.input,
            "view": data_view.render(kept.text, reports),
            "text": json.dumps(loads(kept.text), ensure_ascii=False, indent=2),
            "guarantee": data_view.vouched(kept.account),
            "num_unsure": sum(map(data_view.is_unsure, reports.values())),
        },
    )


# Running


@require_POST
async def run(request: Request, schema_id: UUID) -> HttpResponseBase:
    """Answer the text by one version; the browser asks twice to compare two. Closing the connection stops it."""
    user = cast(User, await request.auser())

    def read() -> TryForm:
        form = TryForm(get_object_or_404(Schema.objects.visible_to(user), pk=schema_id), request.POST)
        form.is_valid()
        return form

    form = await database.read(read)
    if form.errors:
        name, problems = next(iter(form.errors.items()))
        return ApiError(400, f"{form[name].label}: {problems[0]}").response()
    asked = form.cleaned_data
    return await sse.respond(_bodies(user, asked["version"], asked["model"], asked["input"]))


async def _bodies(
    user: User, version: SchemaVersion, model: LanguageModel, text: str
) -> AsyncGenerator[dict[str, str]]:
    draft = _Draft(version)
    yield {"stage": "Preparing the schema"}
    try:
        schema = await structured.compiler.compile(version.text)
        draft.is_exact = schema.is_exact
        request = version.question(model, Message("user", text), owner=f"user:{user.pk}")
        asker = Asker(source="schemas", user=user, schema_version_id=version.pk)
        items = structured.stream(request, schema, model, asker, about=version.schema.description, source=text)
        async with aclosing(items):
            async for item in items:
                if isinstance(item, StructuredResult):
                    kept = await database.write(_keep, user, version, model, text, item)
                    entry = render_to_string("schemas/_try_out_entry.html", {"kept": kept})
                    yield {"stage": "Done", "html": _kept(kept), "entry": entry}
                elif body := draft.note(item):
                    yield body
    except StructuredError as exc:
        violations = [f"{each.message} (at {each.path or 'the top'})" for each in exc.violations[:MAX_VIOLATIONS]]
        yield draft.failed(str(exc), violations)
    except (ProviderError, SchemaRefused) as exc:
        yield draft.failed(str(exc))


def _keep(user: User, version: SchemaVersion, model: LanguageModel, text: str, result: StructuredResult) -> TryOut:
    told = {"input": text, "text": result.text, "account": structured.account(result)}
    return TryOut.objects.keep(user, version, model_name=model.name, **told)


class _Draft:
    """What is written so far, and where the answer stands."""

    def __init__(self, version: SchemaVersion) -> None:
        self.is_exact = False  # is all enforced while it is written?
        self._version = version
        self._text = ""
        self._shown_at = 0.0

    def note(self, item: Event | Attempt | StructuredResult) -> dict[str, str] | None:
        """What the browser is told of it, if anything."""
        match item:
            case Loading(fraction=fraction):
                return {"stage": f"Loading the model, {fraction:.0%}"}
            case Waiting(place=place):
                return {"stage": f"Place {place} in the queue"}
            case Prefill(num_computed=done, num_tokens=total):
                return {"stage": f"Reading the text, {done / max(total, 1):.0%}"}
            case Attempt(number=number):
                self._text = ""
                return {"stage": f"Attempt {number}: the one before was not valid"} if number > 1 else None
            case Chunk(reasoning=reasoning) if reasoning:
                return {"stage": "Thinking"}
            case Chunk(text=text) if text:
                self._text += text
                if time.monotonic() - self._shown_at >= TICK_S:
                    self._shown_at = time.monotonic()
                    return {"stage": "Writing", "html": self._html(is_writing=True)}
        return None

    def failed(self, problem: str, violations: list[str] | None = None) -> dict[str, str]:
        return {"stage": "No result", "html": self._html(problem=problem, violations=violations or [])}

    def _html(self, **more: Any) -> str:
        view = data_view.render(self._text)
        shown = {"version": self._version, "view": view, "text": self._text, "is_exact": self.is_exact}
        return render_to_string("schemas/_try_out.html", {**shown, **more})
