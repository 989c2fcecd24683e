"""Answers by a schema: what the one door streams, decoded by the schema, validated, and asked for again.

Every attempt is a request of its own at the door, with its own row in the usage log. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from localllm.gateway import completions
from localllm.gateway.models import LanguageModel
from localllm.inference.json_schema.compiler import SchemaCompiler
from localllm.inference.json_schema.grammar import CompiledSchema
from localllm.inference.structured import MAX_ATTEMPTS, Attempt, StructuredResult, instruct, structured
from localllm.inference.types import ChatRequest, Event, ResponseFormat

ACCOUNT = ("guarantee", "unenforced", "attempts", "fields", "usage", "finish_reason")

compiler = SchemaCompiler()


async def stream(
    request: ChatRequest,
    schema: CompiledSchema,
    model: LanguageModel,
    asker: completions.Asker,
    *,
    about: str = "",
    source: str = "",
    max_attempts: int = MAX_ATTEMPTS,
) -> AsyncGenerator[Event | Attempt | StructuredResult]:
    """Answer `request` with data that satisfies `schema`; the last item is the result. `about` describes it.

    `source`: the text that values are looked for in; the last message if empty.
    Raises StructuredError when no attempt is valid, and ProviderError when there is no answer at all.
    """
    asked = msgspec.structs.replace(
        request,
        messages=instruct(request.messages, schema.text, about),
        response_format=ResponseFormat(
            schema=schema.text, digest=schema.digest, grammar=schema.grammar, examples=schema.examples
        ),
    )

    def ask(request: ChatRequest) -> AsyncGenerator[Event]:
        return completions.stream(request, model, asker)

    items = structured(
        ask,
        asked,
        schema,
        is_constrained=True,
        source=source or request.messages[-1].content,
        max_attempts=max_attempts,
    )
    async with aclosing(items):
        async for item in items:
            yield item


def account(result: StructuredResult) -> dict[str, Any]:
    """What is said of a result beside its data, as JSON has it."""
    told: dict[str, Any] = msgspec.to_builtins({name: getattr(result, name) for name in ACCOUNT})
    return told
