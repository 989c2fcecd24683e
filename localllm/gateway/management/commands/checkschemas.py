"""manage.py checkschemas FILE: what becomes of each schema of a JSONL file. Needs no database and no server."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
from django.conf import settings
from django.core.management import BaseCommand, CommandError, CommandParser

from localllm.inference.engine.host import EngineHost
from localllm.inference.engine.runner import Runner
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import InferenceError, ProviderError
from localllm.inference.json_schema.checking import Generate, Report, check
from localllm.inference.json_schema.compiler import SchemaCompiler
from localllm.inference.json_schema.grammar import CompiledSchema
from localllm.inference.structured import StructuredResult, structured
from localllm.inference.types import ChatRequest, Message, ResponseFormat, SamplingParams

ONE_SLOT = EngineSettings(num_slots=1)


class Command(BaseCommand):
    help = "Check a JSONL file of lines {id, schema, valid: [...], invalid: [...]} against a model's constraint."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--model", type=Path, default=settings.STARTER_MODEL, help="a GGUF file")
        parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        parser.add_argument(
            "--generate", type=int, default=256, help="tokens of the answer written for each schema; 0: write none"
        )

    def handle(self, *args: Any, file: Path, model: Path, json: bool, generate: int, **options: Any) -> str:
        try:
            lines = file.read_text().splitlines()
            report = asyncio.run(_report(lines, model, generate))
        except (InferenceError, OSError, ValueError) as exc:
            raise CommandError(str(exc)) from exc
        return msgspec.json.encode(report).decode() if json else _table(report)


async def _report(lines: list[str], model: Path, num_tokens: int) -> Report:
    compiler = SchemaCompiler()
    host = EngineHost(model, ONE_SLOT)
    try:
        if num_tokens:
            host.start()
            await host.wait_until_ready()
        generate = _generator(host, num_tokens) if num_tokens else None
        return await check(lines, Runner(model, ONE_SLOT).vocabulary, compiler, generate)
    finally:
        await host.stop()
        await compiler.close()


def _generator(host: EngineHost, num_tokens: int) -> Generate:
    """Answers as any caller would get them: what structured output returns, None for an error."""

    async def generate(schema: CompiledSchema) -> str | None:
        request = ChatRequest(
            # The schema itself may be longer than a small model's window; here the constraint alone is tried.
            messages=(Message("user", "Write one JSON document."),),
            params=SamplingParams(max_tokens=num_tokens, seed=1),
            response_format=ResponseFormat(
                schema=schema.text, digest=schema.digest, grammar=schema.grammar, examples=schema.examples
            ),
        )
        try:
            async with aclosing(structured(host.stream, request, schema, is_constrained=True)) as items:
                async for item in items:
                    if isinstance(item, StructuredResult):
                        return item.text
        except ProviderError:
            pass
        return None

    return generate


def _table(report: Report) -> str:
    lines = [
        f"{each.id}: {each.kind}"
        + (f", shortest {each.min_tokens} tokens" if each.min_tokens is not None else "")
        + "".join(f"\n    {note}" for note in each.notes)
        for each in report.results
    ]
    totals = (f"{name.replace('_', ' ')}: {value}" for name, value in msgspec.structs.asdict(report.totals).items())
    return "\n".join([*lines, "", *totals])
