"""Token masks: what may come next, what is forced, and how a document ends within its budget."""

import json
import random
from functools import cache
from typing import Any

import numpy as np
import pytest

from localllm.inference.engine.constraint import Constraint, Grammar, Grammars, Vocabulary
from localllm.inference.errors import ConstraintError
from localllm.inference.json_schema.document import Document
from localllm.inference.json_schema.grammar import compile_schema
from localllm.inference.json_schema.validator import Validator
from tests.bench.structured import STARTER, load_vocabulary

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2},
        "email": {"type": "string", "format": "email"},
        "code": {"type": "string", "pattern": "order-[0-9]{4}"},
        "tags": {
            "type": "array",
            "items": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
        },
    },
    "required": ["name", "email", "code"],
}


@cache
def vocabulary() -> Vocabulary:
    return load_vocabulary(STARTER)


def grammar_of(schema: Any) -> Grammar:
    compiled = compile_schema(json.dumps(schema))
    return Grammar(compiled.grammar, vocabulary(), compiled.examples)


def text_of(tokens: list[int]) -> str:
    pieces = [vocabulary().pieces[token] for token in tokens if token not in vocabulary().end_ids]
    return b"".join(pieces).decode()


def write(constraint: Constraint, seed: int, max_steps: int = 100_000) -> list[int]:
    """An answer by a model without any sense: every allowed token is as likely as the next."""
    chance = random.Random(seed)
    tokens = constraint.start()
    for _ in range(max_steps):
        if constraint.is_done:
            break
        ids, logits = constraint.candidates(np.zeros(vocabulary().size, np.float32))
        tokens += constraint.accept(int(chance.choice(ids[np.isfinite(logits)])))
    return tokens


@pytest.mark.parametrize("seed", range(8))
def test_it_ends_any_answer_within_its_budget_and_valid(seed: int) -> None:
    grammar = grammar_of(PERSON)
    budget = grammar.min_tokens + 20 * seed
    tokens = write(grammar.start(budget), seed)
    assert len(tokens) <= budget
    assert Validator(Document(json.dumps(PERSON))).violations(json.loads(text_of(tokens))) == []


def test_it_says_that_the_budget_closed_the_answer() -> None:
    grammar = grammar_of({"type": "array", "items": {"type": "integer"}, "minItems": 30})
    constraint = grammar.start(grammar.min_tokens)
    write(constraint, seed=1)
    assert constraint.is_closed


def test_it_refuses_a_budget_that_no_answer_fits_in() -> None:
    grammar = grammar_of(PERSON)
    with pytest.raises(ConstraintError, match=f"at least {grammar.min_tokens}"):
        grammar.start(grammar.min_tokens - 1)


def test_it_forces_what_leaves_no_choice() -> None:
    compiled = compile_schema('{"const": {"status": "complete"}}', whitespace="compact")
    constraint = Grammar(compiled.grammar, vocabulary()).start(100)
    assert text_of(constraint.start()).startswith('{"status":"compl')


def test_it_goes_on_from_what_was_written_before() -> None:
    grammar = grammar_of(PERSON)
    begun = '{"name": "Ada Lovel'
    constraint = grammar.start(200)
    constraint.replay(vocabulary().tokenizer.tokenize_str(begun))
    tokens = write(constraint, seed=2)
    assert json.loads(begun + text_of(tokens))["name"].startswith("Ada Lovel")


def test_it_refuses_to_go_on_from_what_does_not_fit() -> None:
    constraint = grammar_of(PERSON).start(200)
    with pytest.raises(ConstraintError, match="does not fit"):
        constraint.replay(vocabulary().tokenizer.tokenize_str('{"age": '))


def test_it_lets_a_model_think_first() -> None:
    constraint = grammar_of({"type": "boolean"}).start(300, after="</think>")
    said = vocabulary().tokenizer.tokenize_str("Is it? {{ yes </think>")
    tokens = [token for each in said for token in constraint.accept(each)]
    tokens += write(constraint, seed=0)
    thought, _, answer = text_of(tokens).partition("</think>")
    assert thought == "Is it? {{ yes "
    assert json.loads(answer) in (True, False)


def test_it_ends_the_thinking_in_time_for_the_answer() -> None:
    constraint = grammar_of({"type": "boolean"}).start(120, after="</think>")
    tokens: list[int] = []
    while "</think>" not in text_of(tokens):
        tokens += constraint.accept(vocabulary().tokenizer.tokenize_str("a")[0])
    tokens += write(constraint, seed=0)
    assert len(tokens) <= 120
    assert json.loads(text_of(tokens).partition("</think>")[2]) in (True, False)


def test_it_never_allows_control_tokens_within_texts() -> None:
    constraint = grammar_of({"type": "string"}).start(100)
    constraint.replay(vocabulary().tokenizer.tokenize_str('"a'))
    assert not set(constraint.allowed().tolist()) & vocabulary().end_ids


def test_it_masks_in_place_what_it_would_pick_out() -> None:
    constraint = grammar_of({"type": "string"}).start(100)
    constraint.replay(vocabulary().tokenizer.tokenize_str('"'))
    logits = np.arange(vocabulary().size, dtype=np.float32)
    ids, masked = constraint.candidates(logits)
    assert ids[np.isfinite(masked)].tolist() == constraint.allowed().tolist()
    assert np.array_equal(masked[np.isfinite(masked)], logits[constraint.allowed()])


def test_it_remembers_compiled_grammars() -> None:
    grammars = Grammars(vocabulary())
    compiled = compile_schema('{"type": "null"}')
    first = grammars.get(compiled.digest, compiled.grammar)
    assert grammars.get(compiled.digest, compiled.grammar) is first


def test_it_refuses_a_grammar_that_is_none() -> None:
    with pytest.raises(ConstraintError):
        Grammar("start: nothing", vocabulary())
