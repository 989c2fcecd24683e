"""Figures of structured output: which schemas and instances the constraint takes, how it ends, how long it takes.

`python -m tests.bench.structured SCHEMAS.jsonl [--model MODEL.gguf] [--every N]`. The file holds lines
`{"id", "schema", "valid": [...], "invalid": [...]}`. A vocabulary-only GGUF will do as the model.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np

from localllm.inference.engine.constraint import Grammar, Vocabulary
from localllm.inference.errors import ConstraintError
from localllm.inference.json_schema.checking import check, in_schema_order
from localllm.inference.json_schema.compiler import SchemaCompiler
from localllm.inference.json_schema.document import Document
from localllm.inference.json_schema.errors import SchemaRefused
from localllm.inference.json_schema.grammar import compile_schema
from localllm.inference.json_schema.reading import dumps
from localllm.inference.json_schema.validator import Validator

ROOT = Path(__file__).parents[2]
STARTER = ROOT / "localllm/gateway/data/starter.gguf"
SUITE = ROOT / "tests/json_schema_suite/tests/draft2020-12"
OUTCOMES = ("exact", "relaxed", "refused", "narrower", "unsound")


@llama.llama_log_callback
def _silent(level: int, text: bytes, data: Any) -> None:
    pass


def load_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a GGUF, with or without weights."""
    llama.llama_log_set(_silent, ctypes.c_void_p(0))
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

    started = time.perf_counter()
    end_ids = [token for token in special if llama.llama_vocab_is_eog(vocab, token)]
    vocabulary = Vocabulary(pieces, end_ids=end_ids, special_ids=special, tokenize=tokenize)
    print(f"vocabulary of {len(pieces):,} tokens: {time.perf_counter() - started:.2f} s")
    return vocabulary


def figures(lines: list[str], vocabulary: Vocabulary) -> None:
    async def run() -> Any:
        compiler = SchemaCompiler()
        try:
            return await check(lines, vocabulary, compiler)
        finally:
            await compiler.close()

    report = asyncio.run(run())
    print(report.totals)
    for result in report.results:
        if result.kind == "refused" or any(note.startswith("not accepted") for note in result.notes):
            notes = result.notes if result.kind == "refused" else [n for n in result.notes if n[:3] == "not"]
            print(f"  {result.id}: {result.kind}; {'; '.join(notes)[:200]}")


def endings(lines: list[str], vocabulary: Vocabulary) -> None:
    """From the start, and from a random point of each valid instance: can it end, and is the result valid?"""
    outcomes: Counter[str] = Counter()
    compile_ms, mask_us, num_tokens, end_ms = [], [], [], []
    chance = random.Random(3)
    for line in map(json.loads, lines):
        text = json.dumps(line["schema"])
        try:
            compiled = compile_schema(text, extra_properties="schema")
            started = time.perf_counter()
            grammar = Grammar(compiled.grammar, vocabulary, compiled.examples)
            compile_ms.append((time.perf_counter() - started) * 1e3)
        except (SchemaRefused, ConstraintError) as exc:
            outcomes["refused"] += 1
            print(f"  {line['id']}: {exc}")
            continue
        validator = Validator(Document(text))
        outcomes["start " + _verdict(validator, grammar.shortest, compiled.is_exact)] += 1
        for instance in line.get("valid", []):
            tokens = vocabulary.tokenizer.tokenize_str(dumps(instance))
            constraint = grammar.start(100_000)
            cut = chance.randrange(1, max(2, len(tokens)))
            taken: list[int] = []
            for token in tokens[:cut]:
                started = time.perf_counter()
                allowed = constraint.allowed()
                mask_us.append((time.perf_counter() - started) * 1e6)
                if token not in allowed:
                    break
                constraint.replay([token])
                taken.append(token)
            started = time.perf_counter()
            try:
                ending = constraint.close()
            except ConstraintError:
                outcomes["middle not ended"] += 1
                continue
            end_ms.append((time.perf_counter() - started) * 1e3)
            num_tokens.append(len(ending))
            written = b"".join(vocabulary.pieces[token] for token in [*taken, *ending]).decode()
            outcomes["middle " + _verdict(validator, written, compiled.is_exact)] += 1
    print(dict(sorted(outcomes.items())))
    for name, values in {
        "compile, ms": compile_ms, "allowed tokens, us": mask_us, "ending, tokens": num_tokens, "ending, ms": end_ms,
    }.items():  # fmt: skip
        print(f"{name}: p50 %.1f  p90 %.1f  p99 %.1f  max %.1f" % tuple(np.percentile(values, [50, 90, 99, 100])))


def _verdict(validator: Validator, text: str, is_exact: bool) -> str:
    return f"{'exact' if is_exact else 'relaxed'} {'valid' if validator.is_valid(json.loads(text)) else 'INVALID'}"


def keywords(vocabulary: Vocabulary) -> None:
    """What the constraint makes of each group of the official suite: one row per keyword."""
    print("| keyword | " + " | ".join(OUTCOMES) + " |\n| --- |" + " ---: |" * len(OUTCOMES))
    totals: Counter[str] = Counter()
    for path in sorted(SUITE.glob("*.json")):
        counts: Counter[str] = Counter()
        for group in json.loads(path.read_text()):
            if "localhost:1234" not in json.dumps(group["schema"]):
                counts[_outcome(group, vocabulary)] += 1
        totals += counts
        if counts:
            print(f"| {path.stem} | " + " | ".join(str(counts[each]) for each in OUTCOMES) + " |")
    print("| **all** | " + " | ".join(str(totals[each]) for each in OUTCOMES) + " |")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("schemas", type=Path)
    parser.add_argument("--model", type=Path, default=STARTER)
    parser.add_argument("--every", type=int, default=1, help="take every Nth schema only")
    options = parser.parse_args()
    lines = options.schemas.read_text().splitlines()[:: options.every]
    vocabulary = load_vocabulary(options.model)
    figures(lines, vocabulary)
    endings(lines, vocabulary)
    keywords(vocabulary)


if __name__ == "__main__":
    main()
