"""Structured output in figures: which schemas and instances are taken, how answers end, how long it takes.

`python -m tests.bench.structured SCHEMAS.jsonl [NAME ...]`. The file holds lines
`{"id", "schema", "valid": [...], "invalid": [...]}`. Figures are printed, kept in var/build/bench/NAME.json and
written into docs/benchmarks.md; with --every only a part of the schemas is taken, and the page stays.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np

from localllm.inference.engine.constraint import Constraint, Grammar, Vocabulary
from localllm.inference.engine.host import EngineHost
from localllm.inference.engine.runner import ENGINE_BUILD
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import ConstraintError, ProviderError
from localllm.inference.json_schema.checking import check, in_schema_order
from localllm.inference.json_schema.compiler import SchemaCompiler
from localllm.inference.json_schema.document import Document
from localllm.inference.json_schema.errors import SchemaRefused
from localllm.inference.json_schema.grammar import CompiledSchema, compile_schema
from localllm.inference.json_schema.reading import dumps
from localllm.inference.json_schema.validator import Validator
from localllm.inference.structured import StructuredError, StructuredResult, structured
from localllm.inference.types import ChatRequest, Message, ResponseFormat, SamplingParams
from tests.bench import structured_speed
from tests.bench.make_model import SILENT
from tests.bench.measure import Bound, Figure, Report, keep, machine
from tests.bench.plan import Plan

ROOT = Path(__file__).parents[2]
STARTER = ROOT / "localllm/gateway/data/starter.gguf"
SUITE = ROOT / "tests/json_schema_suite/tests/draft2020-12"
MAX_TOKENS = 256
OUTCOMES = ("exact", "relaxed", "refused", "narrower", "unsound")


def load_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a GGUF, with or without weights."""
    llama.llama_log_set(SILENT, ctypes.c_void_p(0))
    llama.llama_backend_init()
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    vocab = llama.llama_model_get_vocab(model)
    buffer = ctypes.create_string_buffer(1 << 14)
    pieces, special = [], []
    for token in range(llama.llama_vocab_n_tokens(vocab)):
        size = llama.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, True)
        pieces.append(buffer.raw[:size])
        if llama.llama_vocab_get_attr(vocab, token) & (llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_UNKNOWN):
            special.append(token)

    def tokenize(text: str) -> list[int]:
        data = text.encode()
        ids = (llama.llama_token * (len(data) + 8))()
        return ids[: llama.llama_tokenize(vocab, data, len(data), ids, len(ids), False, False)]

    end_ids = [token for token in special if llama.llama_vocab_is_eog(vocab, token)]
    return Vocabulary(pieces, end_ids=end_ids, special_ids=special, tokenize=tokenize)


@dataclass(frozen=True, slots=True)
class Schemas:
    """The lines of a file, and the vocabulary that they are tried with: that of the 0.5B model."""

    lines: Sequence[str]
    plan: Plan

    @property
    def vocabulary(self) -> Vocabulary:
        return load_vocabulary(self.plan.model)


def percent(count: int, total: int) -> float:
    return 100 * count / total if total else 100.0


async def schemas(asked: Schemas) -> Report:
    """Which schemas and instances are judged right."""
    compiler = SchemaCompiler()
    try:
        report = await check(asked.lines, asked.vocabulary, compiler)
    finally:
        await compiler.close()
    totals = report.totals
    accepted = totals.exact + totals.relaxed
    figures = [
        Figure("schemas accepted", "%", [percent(accepted, totals.schemas)], wanted=Bound("≥", 99)),
        Figure("enforced whole", "%", [percent(totals.exact, totals.schemas)], wanted=Bound("≥", 90)),
        Figure("enforced in part, the rest checked afterwards", "%", [percent(totals.relaxed, totals.schemas)]),
        Figure("refused", "%", [percent(totals.refused, totals.schemas)]),
        Figure(
            "valid instances accepted by the mask", "%", [percent(totals.valid_accepted, totals.valid_total)],
            wanted=Bound("≥", 99.5),
        ),
        Figure(
            "invalid instances rejected by the mask", "%",
            [percent(totals.invalid_rejected_by_constraint, totals.invalid_total)],
        ),
        Figure(
            "invalid instances rejected by mask or validation", "%",
            [percent(totals.invalid_rejected, totals.invalid_total)], wanted=Bound("≥", 100),
        ),
    ]  # fmt: skip
    counts = f"{totals.schemas} schemas, {totals.valid_total} valid and {totals.invalid_total} invalid instances."
    odd = [
        f"- {result.id}: {note}"
        for result in report.results
        for note in result.notes
        if result.kind == "refused" or note.startswith("not accepted")
    ]
    return Report(figures, notes=[counts, "\n".join(odd)] if odd else [counts])


async def endings(asked: Schemas) -> Report:
    """From the start, and from a random point of each valid instance: can it end, and is the result valid?"""
    vocabulary = asked.vocabulary
    outcomes: Counter[str] = Counter()
    walks: Counter[str] = Counter()
    times: dict[str, list[float]] = {"compile": [], "mask": [], "step": [], "ending": []}
    lengths: list[int] = []
    chance = random.Random(3)
    for line in map(json.loads, asked.lines):
        text = json.dumps(line["schema"])
        started = time.perf_counter()
        try:
            compiled = compile_schema(text, extra_properties="schema")
            grammar = Grammar(compiled.grammar, vocabulary, compiled.examples)
        except (SchemaRefused, ConstraintError):
            continue
        times["compile"].append(time.perf_counter() - started)
        walks["closed" if _walk(grammar, chance, times) else "not closed"] += 1
        validator = Validator(Document(text))
        for instance in line.get("valid", []):
            constraint = grammar.start(100_000)
            taken = _begun(constraint, vocabulary.tokenizer.tokenize_str(dumps(instance)), chance, times["mask"])
            started = time.perf_counter()
            try:
                ending = constraint.close()
            except ConstraintError:
                outcomes["not ended"] += 1
                continue
            times["ending"].append(time.perf_counter() - started)
            lengths.append(len(ending))
            written = b"".join(vocabulary.pieces[token] for token in [*taken, *ending]).decode()
            outcomes[_verdict(validator, written, compiled.is_exact)] += 1
    num_ended = outcomes.total() - outcomes["not ended"]
    num_exact = outcomes["exact valid"] + outcomes["exact INVALID"]
    figures = [
        Figure(
            "answers closed, from a random point", "%", [percent(num_ended, outcomes.total())], wanted=Bound("≥", 99.5)
        ),
        Figure(
            "of these valid, fully enforced schemas",
            "%",
            [percent(outcomes["exact valid"], num_exact)],
            wanted=Bound("≥", 100),
        ),
        Figure(
            "random walks that end in a document",
            "%",
            [percent(walks["closed"], walks.total())],
            wanted=Bound("≥", 99.5),
        ),
        Figure("length of the ending, p50", "tokens", [float(np.percentile(lengths, 50))]),
        *_percentiles("schema to grammar, ready for a model", "ms", times["compile"], 1e3, 99),
        *_percentiles("mask, as token ids", "µs", times["mask"], 1e6, 100),
        *_percentiles("a token taken, with the look for an ending", "ms", times["step"], 1e3, 100, Bound("<", 50)),
        *_percentiles("an ending found", "ms", times["ending"], 1e3, 100),
    ]
    return Report(figures, notes=[f"From {outcomes.total()} points: {dict(sorted(outcomes.items()))}."])


def _percentiles(
    what: str, unit: str, seconds: Sequence[float], scale: float, top: int, wanted: Bound | None = None
) -> list[Figure]:
    middle, high = (float(each) * scale for each in np.percentile(seconds, [50, top]))
    name = "max" if top == 100 else f"p{top}"
    return [Figure(f"{what}, p50", unit, [middle]), Figure(f"{what}, {name}", unit, [high], wanted=wanted)]


def _walk(grammar: Grammar, chance: random.Random, times: dict[str, list[float]]) -> bool:
    """An answer by a model without any sense, whose budget is nearly too small. Did it end?"""
    constraint = grammar.start(grammar.min_tokens + 100)
    constraint.start()
    while not constraint.is_done:
        started = time.perf_counter()
        allowed = constraint.allowed()
        masked = time.perf_counter()
        try:
            constraint.accept(int(chance.choice(allowed)))
        except ConstraintError:
            return False
        times["mask"].append(masked - started)
        times["step"].append(time.perf_counter() - started)
    return True


def _begun(constraint: Constraint, tokens: list[int], chance: random.Random, mask_s: list[float]) -> list[int]:
    """The instance up to a random point, as far as it is accepted."""
    taken: list[int] = []
    for token in tokens[: chance.randrange(1, max(2, len(tokens)))]:
        if token not in constraint.allowed():
            break
        constraint.replay([token])
        taken.append(token)
    return taken


def _verdict(validator: Validator, text: str, is_exact: bool) -> str:
    return f"{'exact' if is_exact else 'relaxed'} {'valid' if validator.is_valid(json.loads(text)) else 'INVALID'}"


async def keywords(asked: Schemas) -> Report:
    """What the constraint makes of each group of the official suite: one row per keyword."""
    vocabulary = asked.vocabulary
    rows = []
    totals: Counter[str] = Counter()
    for path in sorted(SUITE.glob("*.json")):
        counts: Counter[str] = Counter()
        for group in json.loads(path.read_text()):
            if "localhost:1234" not in json.dumps(group["schema"]):
                counts[_outcome(group, vocabulary)] += 1
        totals += counts
        if counts:
            rows.append([path.stem, *(str(counts[each]) for each in OUTCOMES)])
    rows.append(["**all**", *(str(totals[each]) for each in OUTCOMES)])
    return Report([], table=[["keyword", *OUTCOMES], *rows])


def _outcome(group: dict[str, Any], vocabulary: Vocabulary) -> str:
    try:
        compiled = compile_schema(json.dumps(group["schema"]), extra_properties="schema")
        grammar = Grammar(compiled.grammar, vocabulary, compiled.examples)
    except (SchemaRefused, ConstraintError) as exc:
        # Nothing satisfies it, and that was seen: as exact as can be.
        is_right = getattr(exc, "kind", "") == "unsatisfiable" and not any(test["valid"] for test in group["tests"])
        return "exact" if is_right else "refused"
    document = Document(json.dumps(group["schema"]))
    validator, order = Validator(document), in_schema_order(document)
    accepted = [grammar.accepts(dumps(order(test["data"]))) for test in group["tests"]]
    truth = [test["valid"] and validator.is_valid(test["data"]) for test in group["tests"]]
    if not compiled.is_exact:
        return "relaxed"
    if any(got and not wanted for got, wanted in zip(accepted, truth, strict=True)):
        return "unsound"
    return "exact" if accepted == truth else "narrower"


@dataclass(slots=True)
class _Generated:
    """What became of answers to many schemas."""

    num_fitting: int = 0  # schemas whose shortest answer fits the budget
    num_valid: int = 0
    num_invalid: int = 0
    num_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)


async def generation(asked: Schemas) -> Report:
    """Whole answers, as any caller gets them: never invalid data, and data nearly always."""
    figures, notes = [], []
    models = {"starter": (STARTER, 1), "random weights, 0.5B": (asked.plan.model, 8)}
    for name, (model, every) in models.items():
        made = await _generate(model, asked.lines[::every])
        figures += [
            Figure(f"invalid data returned as success, {name}", "answers", [made.num_invalid], wanted=Bound("≤", 0)),
            Figure(
                f"success where the shortest answer fits, {name}", "%", [percent(made.num_valid, made.num_fitting)],
                wanted=Bound("≥", 99.5),
            ),
        ]  # fmt: skip
        notes.append(
            f"{name}: {made.num_fitting} of {len(asked.lines[::every])} schemas have an answer within "
            f"{MAX_TOKENS} tokens; errors: {dict(made.failures) or 'none'}{'' if not made.failed else ': '}"
            f"{', '.join(made.failed)}."
        )
    return Report(figures, notes=notes)


async def _generate(model: Path, lines: Sequence[str]) -> _Generated:
    vocabulary, compiler, made = load_vocabulary(model), SchemaCompiler(), _Generated()
    host = EngineHost(model, EngineSettings(n_ctx=2048, num_slots=8))
    host.start()
    free = asyncio.Semaphore(8)

    async def one(line: dict[str, Any]) -> None:
        try:
            compiled = await compiler.compile(json.dumps(line["schema"], ensure_ascii=False))
            if Grammar(compiled.grammar, vocabulary, compiled.examples).min_tokens > MAX_TOKENS:
                return
        except (SchemaRefused, ConstraintError):
            return
        made.num_fitting += 1
        async with free:
            await _answer(host, compiled, line["id"], made)

    try:
        await host.wait_until_ready()
        await asyncio.gather(*(one(json.loads(line)) for line in lines))
    finally:
        await host.stop()
        await compiler.close()
    return made


async def _answer(host: EngineHost, schema: CompiledSchema, id: str, made: _Generated) -> None:
    wanted = ResponseFormat(schema=schema.text, digest=schema.digest, grammar=schema.grammar, examples=schema.examples)
    request = ChatRequest(
        # The schema itself may be longer than a small model's window; here the constraint alone is tried.
        messages=(Message("user", "Write one JSON document."),),
        params=SamplingParams(max_tokens=MAX_TOKENS, seed=1),
        owner=id,
        response_format=wanted,
    )
    try:
        async with aclosing(structured(host.stream, request, schema, is_constrained=True)) as items:
            async for item in items:
                if isinstance(item, StructuredResult):
                    is_valid = Validator(Document(schema.text)).is_valid(json.loads(item.text))
                    made.num_valid += is_valid
                    made.num_invalid += not is_valid
    except ProviderError as exc:
        made.failures[exc.kind if isinstance(exc, StructuredError) else type(exc).__name__] += 1
        made.failed.append(id)


async def overhead(asked: Schemas) -> Report:
    return await structured_speed.overhead(asked.plan)


async def speed(asked: Schemas) -> Report:
    return await structured_speed.against_grammar(asked.plan, STARTER)


BENCHMARKS: dict[str, Callable[[Schemas], Coroutine[Any, Any, Report]]] = {
    "structured-schemas": schemas,
    "structured-endings": endings,
    "structured-keywords": keywords,
    "structured-generation": generation,
    "structured-overhead": overhead,
    "structured-speed": speed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("schemas", type=Path)
    parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(BENCHMARKS))
    parser.add_argument("--every", type=int, default=1, help="take every Nth schema only")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no benchmark is named {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}")
    asked = Schemas(options.schemas.read_text().splitlines()[:: options.every], Plan())
    for name in options.names or BENCHMARKS:
        context = {
            "machine": machine(),
            "schemas": f"{options.schemas.name}, {len(asked.lines)}",
            "model": asked.plan.model.name,
            "engine": ENGINE_BUILD,
            "command": f"python -m tests.bench.structured {options.schemas.name} {name}",
        }
        report = asyncio.run(BENCHMARKS[name](asked))
        print(f"\n{name} ({context['machine']})\n\n{report.markdown()}", flush=True)
        keep(name, report, context, publish=options.every == 1)


if __name__ == "__main__":
    main()
