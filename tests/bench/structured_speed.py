"""What a schema costs while decoding, and how long a JSON answer takes beside llama-server's grammar.

Same schema, model, prompt and sampling on both sides, at our engine's door and at llama-server's /completion.
"""

from __future__ import annotations

import json
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from localllm.inference.engine.chat_template import ChatTemplate
from localllm.inference.engine.gguf import read_header
from localllm.inference.engine.host import EngineHost
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.json_schema.document import Document
from localllm.inference.json_schema.grammar import compile_schema
from localllm.inference.json_schema.validator import Validator
from localllm.inference.types import ChatRequest, Chunk, Message, ResponseFormat, SamplingParams
from tests.bench import peers
from tests.bench.doors import SAMPLERS, engine, post, words
from tests.bench.measure import Bound, Figure, Report, alternate
from tests.bench.plan import Plan

WINDOW = 2048
NUM_TOKENS = 96  # decoded per run, where the cost of a token is measured
PAIRS = 7
MAX_TOKENS = 400
GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)

TEXTS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
NAMES: dict[str, Any] = {"type": "string", "minLength": 3, "maxLength": 24}
# As people write them: names that are forced, values that are not, lists of a known length.
SCHEMAS: dict[str, dict[str, Any]] = {
    "contact": {
        "type": "object",
        "properties": {
            "first_name": NAMES,
            "last_name": NAMES,
            "email_address": {"type": ["string", "null"], "maxLength": 30},
            "telephone": {"type": "string", "pattern": "^[0-9]{3}-[0-9]{4}$"},
            "preferred_channel": {"enum": ["email", "telephone", "letter"]},
            "is_customer": {"type": "boolean"},
        },
        "required": ["first_name", "last_name", "email_address", "telephone", "preferred_channel", "is_customer"],
        "additionalProperties": False,
    },
    "invoice": {
        "type": "object",
        "properties": {
            "invoice_number": {"type": "integer", "minimum": 1000, "maximum": 9999},
            "currency": {"enum": ["EUR", "USD", "GBP"]},
            "line_items": {
                "type": "array",
                "minItems": 3,
                "maxItems": 3,
                "items": {
                    "type": "object",
                    "properties": {
                        "description": NAMES,
                        "quantity": {"type": "integer", "minimum": 1, "maximum": 9},
                        "unit_price_in_cents": {"type": "integer", "minimum": 100, "maximum": 9999},
                    },
                    "required": ["description", "quantity", "unit_price_in_cents"],
                    "additionalProperties": False,
                },
            },
            "is_paid": {"type": "boolean"},
        },
        "required": ["invoice_number", "currency", "line_items", "is_paid"],
        "additionalProperties": False,
    },
}


@dataclass(slots=True)
class Written:
    """One answer of ours: how long it took, and how many of its tokens came along without a step of their own."""

    text: str = ""
    num_tokens: int = 0
    num_chunks: int = 0
    started_at: float = field(default_factory=time.perf_counter)
    first_at: float = 0.0
    last_at: float = 0.0


async def overhead(plan: Plan) -> Report:
    """Milliseconds a token with a schema, beside those without, where nothing is forced: long texts."""
    sides = {"text": None, "JSON": TEXTS}
    async with engine(plan.model, EngineSettings(n_ctx=WINDOW, num_slots=1)) as host:

        async def rate(schema: Any, round: int) -> float:
            chat = (Message("user", words(40, (round, schema is None))),)
            written = await write(
                host, ChatRequest(messages=chat, params=SamplingParams(seed=round)), schema, NUM_TOKENS
            )
            return (written.last_at - written.first_at) * 1000 / (written.num_tokens - 1)

        with_schema, without = await alternate(
            plan.pairs(PAIRS), partial(rate, sides["JSON"]), partial(rate, sides["text"])
        )
    figure = Figure("a token within a text, by a schema", "ms", with_schema, "no schema", without, Bound("≤", 1.05))
    return Report([figure])


async def against_grammar(plan: Plan, starter: Path) -> Report:
    figures: list[Figure] = []
    commands, notes = [], []
    for name, model, bound in (("random weights", plan.model, 0.8), ("starter", starter, 1.0)):
        command = peers.server_command(model, num_slots=1, window=WINDOW, num_threads=plan.num_threads)
        commands.append(peers.command_line(command))
        template = ChatTemplate(read_header(model).chat_template)
        async with engine(model, EngineSettings(n_ctx=WINDOW, num_slots=1)) as host:
            with peers.running(command) as url:
                for schema_name, schema in SCHEMAS.items():
                    figure, note = await _beside_llama_server(
                        plan, host, url, template, schema, f"{schema_name}, {name}", bound
                    )
                    figures.append(figure)
                    notes.append(note)
    return Report(figures, commands, notes)


async def _beside_llama_server(
    plan: Plan, host: EngineHost, url: str, template: ChatTemplate, schema: Any, what: str, bound: float
) -> tuple[Figure, str]:
    judge = Validator(Document(json.dumps(schema)))
    told: list[Written] = []
    their_tokens: list[int] = []

    def chat(round: int) -> tuple[Message, ...]:
        return (Message("user", f"Write one JSON document about {words(12, round)}."),)

    async def ours(round: int) -> float:
        request = ChatRequest(messages=chat(round), params=msgspec.structs.replace(GREEDY, seed=round))
        written = await write(host, request, schema)
        _must_be_valid(judge, written.text)
        told.append(written)
        return (written.last_at - written.started_at) * 1000

    async def theirs(round: int) -> float:
        prompt = template.render(chat(round)).text
        body = {
            "prompt": prompt, "json_schema": schema, "n_predict": MAX_TOKENS, "temperature": 0.0, "seed": round,
            "samplers": SAMPLERS, "cache_prompt": False, "stream": True,
        }  # fmt: skip
        started, text, count = time.perf_counter(), "", 0
        async with aclosing(post(f"{url}/completion", body)) as events:
            async for data in events:
                event = json.loads(data)
                text += event["content"]
                count = event.get("tokens_predicted", count)
        elapsed = (time.perf_counter() - started) * 1000
        _must_be_valid(judge, text)
        their_tokens.append(count)
        return elapsed

    await ours(-1)
    await theirs(-1)
    told.clear()
    their_tokens.clear()
    here, there = await alternate(plan.pairs(PAIRS), ours, theirs)
    total, theirs_total = sum(each.num_tokens for each in told), sum(their_tokens)
    forced = total - sum(each.num_chunks for each in told)
    note = (
        f"{what}: {total / len(told):.0f} tokens an answer here, {100 * forced / total:.0f} % of them without a step "
        f"of their own; {theirs_total / len(their_tokens):.0f} tokens an answer of llama-server."
    )
    return Figure(what, "ms", here, "llama-server's grammar", there, Bound("≤", bound)), note


def _must_be_valid(judge: Validator, text: str) -> None:
    if not judge.is_valid(json.loads(text)):
        raise SystemExit(f"An answer breaks its schema, so its time says nothing: {text}")


async def write(host: EngineHost, request: ChatRequest, schema: Any, num_tokens: int | None = None) -> Written:
    """One answer, ended after `num_tokens` if that is given."""
    if schema is not None:
        compiled = _compiled(json.dumps(schema))
        request = msgspec.structs.replace(request, response_format=compiled)
    written = Written()
    async with aclosing(host.stream(request)) as events:
        async for event in events:
            if isinstance(event, Chunk) and event.token_ids:
                written.last_at = time.perf_counter()
                written.first_at = written.first_at or written.last_at
                written.text += event.text
                written.num_tokens += len(event.token_ids)
                written.num_chunks += 1
                if num_tokens is not None and written.num_tokens >= num_tokens:
                    break
    return written


_known: dict[str, ResponseFormat] = {}


def _compiled(text: str) -> ResponseFormat:
    if text not in _known:
        schema = compile_schema(text)
        _known[text] = ResponseFormat(
            schema=schema.text, digest=schema.digest, grammar=schema.grammar, examples=schema.examples
        )
    return _known[text]
