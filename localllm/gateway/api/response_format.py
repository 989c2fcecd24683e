"""`response_format`: which schema an answer must satisfy, and the answer as events once it does.

Nothing that may still turn out to be invalid leaves here, except a stream whose every keyword is enforced
while it is written: that one ends with an error instead of [DONE] when its check fails all the same.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from localllm.gateway import completions, structured
from localllm.gateway.api.errors import from_refused_schema
from localllm.gateway.models import LanguageModel
from localllm.inference.json_schema.errors import SchemaRefused
from localllm.inference.json_schema.grammar import CompiledSchema
from localllm.inference.structured import MAX_ATTEMPTS, Attempt, StructuredError, StructuredResult
from localllm.inference.types import ChatRequest, Chunk, Event, Finished, Loading

ANY_OBJECT = '{"type": "object"}'
PARAM = "response_format.json_schema.schema"


class _Format(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextFormat(_Format):
    type: Literal["text"]


class JsonObjectFormat(_Format):
    type: Literal["json_object"]


class NamedSchema(_Format):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any] | bool, Field(alias="schema")]
    strict: bool | None = None


class JsonSchemaFormat(_Format):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The schema that an answer must satisfy, what its author says of it, and the text its values come from."""

    schema: CompiledSchema
    about: str = ""
    source: str = ""  # the last message if empty


async def wanted(format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None) -> Wanted | None:
    """What `format` asks for; None when any text will do. Raises ApiError for a schema that cannot be used."""
    if isinstance(format, JsonObjectFormat):
        return Wanted(await structured.compiler.compile(ANY_OBJECT))
    if not isinstance(format, JsonSchemaFormat):
        return None
    named = format.json_schema
    try:
        schema = await structured.compiler.compile(schema_text(named.schema_))
    except SchemaRefused as exc:
        raise from_refused_schema(exc, PARAM) from exc
    if named.strict:
        _refuse_unenforced(schema)
    return Wanted(schema, f"{named.name}: {named.description}" if named.description else "")


def schema_text(schema: dict[str, Any] | bool) -> str:
    try:
        text = json.dumps(schema, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        raise SchemaRefused("The schema holds half of a surrogate pair, which is no character.") from None
    except RecursionError:
        raise SchemaRefused("The schema nests too deep. Flatten it.") from None
    return text


def _refuse_unenforced(schema: CompiledSchema) -> None:
    """`strict` promises that the model cannot write anything else, so nothing may be left to a later check."""
    for note in schema.unenforced:
        raise from_refused_schema(
            SchemaRefused(
                f"“{note.keyword}” at {note.path or 'the top'} cannot be enforced while the model writes, as strict "
                "asks for. Leave it out, or send strict: false: then it is checked afterwards.",
                path=note.path,
                keyword=note.keyword,
            ),
            PARAM,
        )


async def events(
    asked: ChatRequest, wanted: Wanted, model: LanguageModel, asker: completions.Asker, *, as_written: bool
) -> AsyncGenerator[Event | StructuredResult]:
    """The answer as events: text, then the result, then Finished. `as_written`: text comes as it is written.

    Otherwise, and always where a keyword is checked only afterwards, it comes when it is known to be valid, and
    nothing but Loading before it: so an error that comes soon has a status of its own.
    """
    as_written = as_written and wanted.schema.is_exact
    items = structured.stream(
        asked,
        wanted.schema,
        model,
        asker,
        about=wanted.about,
        source=wanted.source,
        max_attempts=1 if as_written else MAX_ATTEMPTS,
    )
    finished: Finished | None = None
    async with aclosing(items):
        async for item in items:
            match item:
                case Finished():
                    finished = item
                case StructuredResult():
                    if not as_written:
                        yield Chunk(item.text, logprobs=item.logprobs, reasoning=item.reasoning)
                    elif item.guarantee == "repaired":
                        raise StructuredError(
                            "The answer was not valid as it was written. Ask again.", "invalid_after_retries"
                        )
                    yield item
                    assert finished is not None
                    yield Finished(reason=item.finish_reason, usage=item.usage, seed=finished.seed)
                case Attempt():
                    pass
                case _ if as_written or isinstance(item, Loading):
                    yield item
