"""Token masks: what may come next, what is forced, and how a document ends within its budget."""

import json
import random
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.inference.engine.constraint import Constraint, Grammar, Grammars, Preface, Vocabulary
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


@pytest.mark.parametrize("seed", range(6))
def test_it_opens_only_what_it_can_close(seed: int) -> None:
    names = [f"a_required_property_with_a_long_name_{number}" for number in range(12)]
    item = {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}
    schema = {"type": "array", "items": item}
    tokens = write(grammar_of(schema).start(150), seed)
    assert len(tokens) <= 150 and Validator(Document(json.dumps(schema))).is_valid(json.loads(text_of(tokens)))


def test_it_ends_a_long_document_that_it_has_not_looked_at_for_long() -> None:
    fields = {f"text_{number}": {"type": "string", "maxLength": 400} for number in range(12)}
    schema = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    begun = json.dumps(dict.fromkeys(list(fields)[:11], "a sentence of some length, and more " * 10))[:-40]
    constraint = grammar_of(schema).start(10_000)
    constraint.replay(vocabulary().tokenizer.tokenize_str(begun))
    assert Validator(Document(json.dumps(schema))).is_valid(json.loads(begun + text_of(constraint.close())))


def test_it_counts_the_shortest_answer_in_the_tokens_that_say_most() -> None:
    grammar = grammar_of({"const": "a long sentence that is the only one"})
    assert grammar.min_tokens <= len(vocabulary().tokenizer.tokenize_str(grammar.shortest))
    tokens = write(grammar.start(grammar.min_tokens), seed=1)
    assert len(tokens) <= grammar.min_tokens
    assert json.loads(text_of(tokens)) == "a long sentence that is the only one"


@given(st.text(max_size=40))
def test_it_cuts_any_text_into_as_few_tokens_as_can_be(text: str) -> None:
    tokens = vocabulary().fewest(text.encode())
    assert tokens is not None and text_of(tokens) == text
    assert len(tokens) <= len(vocabulary().tokenizer.tokenize_str(text))


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


def thinking(*, is_open: bool = True) -> Preface:
    tokenize = vocabulary().tokenizer.tokenize_str
    return Preface(tuple(tokenize("<think>")), tuple(tokenize("</think>")), is_open)


def test_it_lets_a_model_think_first() -> None:
    constraint = grammar_of({"type": "boolean"}).start(300, thinking())
    said = vocabulary().tokenizer.tokenize_str("Is it? {{ yes </think>")
    tokens = [token for each in said for token in constraint.accept(each)]
    tokens += write(constraint, seed=0)
    thought, _, answer = text_of(tokens).partition("</think>")
    assert thought == "Is it? {{ yes "
    assert json.loads(answer) in (True, False)


@pytest.mark.parametrize("budget", [20, 21, 60, 200])
def test_it_ends_the_thinking_in_time_for_the_answer(budget: int) -> None:
    constraint = grammar_of({"type": "boolean"}).start(budget, thinking())
    tokens = constraint.start()
    while "</think>" not in text_of(tokens):
        tokens += constraint.accept(vocabulary().tokenizer.tokenize_str("a")[0])
    tokens += write(constraint, seed=0)
    assert len(tokens) <= budget
    assert json.loads(text_of(tokens).partition("</think>")[2]) in (True, False)


def test_it_lets_a_model_begin_to_think_or_answer_at_once() -> None:
    preface = thinking(is_open=False)
    grammar = grammar_of({"type": "boolean"})
    assert preface.opening[0] in grammar.start(300, preface).allowed()
    thought = grammar.start(300, preface)
    assert text_of(thought.accept(preface.opening[0])) == "<think>"
    answered = grammar.start(300, preface)
    begun = answered.accept(vocabulary().tokenizer.tokenize_str("true")[0])
    assert json.loads(text_of([*begun, *write(answered, seed=3)])) is True


def test_it_needs_room_for_the_end_of_the_thinking() -> None:
    grammar, preface = grammar_of({"type": "boolean"}), thinking()
    with pytest.raises(ConstraintError, match=f"at least {grammar.min_tokens + len(preface.closing)}"):
        grammar.start(grammar.min_tokens, preface)


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


@pytest.mark.parametrize(
    ("written", "may_go_on"), [("[3e28", True), ("[3e-29", False), ('["3e29', True), ("[329", True)]
)
def test_it_lets_no_exponent_grow_beyond_what_a_number_can_be(written: str, may_go_on: bool) -> None:
    constraint = grammar_of({"type": "array", "items": {"type": ["number", "string"]}}).start(100)
    constraint.replay(vocabulary().tokenizer.tokenize_str(written))
    allowed = {vocabulary().pieces[token][:1] for token in constraint.allowed()}
    assert (b"7" in allowed) == may_go_on and len(allowed) > 1


def test_it_remembers_compiled_grammars() -> None:
    grammars = Grammars(vocabulary())
    compiled = compile_schema('{"type": "null"}')
    first = grammars.get(compiled.digest, compiled.grammar)
    assert grammars.get(compiled.digest, compiled.grammar) is first


def test_it_refuses_a_grammar_that_is_none() -> None:
    with pytest.raises(ConstraintError):
        Grammar("start: nothing", vocabulary())
