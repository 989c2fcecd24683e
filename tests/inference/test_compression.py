"""Older turns as key facts: valid and within the budget, whatever the model writes. On the real starter model."""

import json
from contextlib import aclosing

import pytest

from localllm.inference.compression import LISTS, Compressed, CompressionError, Fact, KeyFacts, compress, fit, grounded
from localllm.inference.errors import ContextOverflow
from localllm.inference.types import ChatRequest, Chunk, Finished, Message, SamplingParams, Usage
from tests.inference.starter_host import Starter

pytestmark = pytest.mark.asyncio(loop_scope="module")

REQUEST = ChatRequest(messages=(), params=SamplingParams(temperature=0.0))
TURNS = [
    Message("user", "My sister Maya Lindgren flies to Uppsala on 14 March, flight SK 1421. " * 4),
    Message("assistant", "Then we book the train at 9:40 for her. Shall I reserve a seat? " * 4),
]
KNOWN = KeyFacts(names=(Fact("Maya Lindgren", is_pinned=True), Fact("Uppsala")), narrative=(Fact("A trip."),))


def instruct(summary, turns, max_tokens):
    return (Message("user", f"Key facts in {max_tokens} tokens. So far: {summary}\n{turns}"),)


class Scripted(Starter):
    """Counts as the starter does, and writes what it was told to."""

    def __init__(self, host, **data):
        super().__init__(host)
        self.data = {**{key: [] for key in LISTS}, "narrative": "They planned a trip.", **data}

    async def ask(self, request):
        self.requests.append(request)
        yield Chunk(json.dumps(self.data))
        yield Finished(reason="stop", usage=Usage(), seed=1)


async def run(model, turns=TURNS, *, budget_tokens=64, previous=None):
    items = compress(
        model.ask, REQUEST, turns, instruct, model, previous=previous, budget_tokens=budget_tokens, window=1024
    )
    async with aclosing(items):
        *_, last = [item async for item in items]
    assert isinstance(last, Compressed)
    return last


@pytest.mark.parametrize("budget_tokens", [24, 64, 150])
async def test_the_budget_is_never_exceeded(starter, budget_tokens):
    made = await run(starter, TURNS * 3, budget_tokens=budget_tokens)
    (num_tokens,) = await starter.texts([made.facts.text])
    assert 0 < num_tokens == made.num_tokens <= budget_tokens < made.num_tokens_before


async def test_a_conversation_longer_than_the_window_is_read_in_parts(starter):
    made = await run(starter, TURNS * 12)
    assert len(starter.requests) > 2 and made.num_tokens <= 64
    assert made.num_tokens_before > 1024


async def test_pinned_facts_are_carried_word_for_word_and_others_are_the_models_choice(host):
    model = Scripted(host, numbers=["SK 1421"])
    made = await run(model, previous=KNOWN)
    assert made.facts.names == (Fact("Maya Lindgren", is_pinned=True),) and made.facts.numbers == (Fact("SK 1421"),)
    assert KNOWN.text in model.requests[0].messages[0].content, "The summary so far is built upon."


async def test_pinned_facts_outlast_many_compressions_of_a_tiny_model(starter):
    facts = KNOWN
    for _ in range(3):
        facts = (await run(starter, previous=facts)).facts
    assert Fact("Maya Lindgren", is_pinned=True) in facts.names


async def test_a_talkative_model_loses_its_least_important_facts_not_the_pinned_ones(host):
    model = Scripted(host, decisions=[f"Train number {n} is booked" for n in range(12)])
    made = await run(model, TURNS * 2, previous=KNOWN, budget_tokens=60)
    assert made.num_tokens <= 60
    assert made.facts.decisions[0].text == "Train number 0 is booked" and len(made.facts.decisions) < 12
    assert made.facts.names == KNOWN.carried().names


async def test_names_and_numbers_that_nobody_said_are_not_kept(host):
    model = Scripted(host, names=["Maya Lindgren", "Zaphod"], numbers=["SK 1421", "at 9:40", "4,200 euros", "candy"])
    made = await run(model)
    assert [fact.text for fact in made.facts.names] == ["Maya Lindgren"]
    assert [fact.text for fact in made.facts.numbers] == ["SK 1421", "at 9:40"]


@pytest.mark.parametrize(("written", "is_kept"), [("41,500", True), ("41500", True), ("41.600", False), ("500", True)])
async def test_a_number_may_be_written_with_other_separators(written, is_kept):
    facts = grounded(KeyFacts(numbers=(Fact(f"{written} euros"),)), "Their offer is 41,500 euros.")
    assert bool(facts.numbers) == is_kept


async def test_one_long_sentence_is_cut_where_it_shows(host):
    made = await run(Scripted(host, narrative="word " * 200), TURNS * 2, budget_tokens=40)
    assert made.facts.text.endswith("[…]") and 20 < made.num_tokens <= 40


async def test_a_summary_longer_than_what_it_stands_for_is_refused(starter):
    with pytest.raises(CompressionError, match="messages stay as they are"):
        await run(Scripted(starter.host), [Message("user", "Hi.")])


async def test_pinned_facts_that_exceed_the_budget_are_named_as_the_reason(host):
    facts = KeyFacts(decisions=(Fact("We go by train. " * 20, is_pinned=True),))
    with pytest.raises(CompressionError, match="Unpin or shorten"):
        await run(Scripted(host), TURNS * 3, previous=facts)


async def test_a_window_without_room_for_the_turns_is_refused_with_numbers(starter):
    with pytest.raises(ContextOverflow, match="holds 1024"):
        await run(starter, TURNS * 12, budget_tokens=800)


async def test_what_somebody_changes_or_adds_is_pinned():
    facts = KNOWN.edited({"names": ["Maya Lindgren", "Uppsala", "Jonas"], "narrative": ["A long trip."]})
    assert facts.names == (Fact("Maya Lindgren", True), Fact("Uppsala"), Fact("Jonas", True))
    assert facts.narrative == (Fact("A long trip.", True),)


async def test_a_fact_can_be_pinned_and_unpinned():
    pinned = KNOWN.with_pin("Uppsala", is_pinned=True)
    assert [fact.text for fact in pinned.carried().names] == ["Maya Lindgren", "Uppsala"]
    assert pinned.with_pin("Uppsala", is_pinned=False) == KNOWN


async def test_fitting_keeps_what_fits(starter):
    assert await fit(KNOWN, 64, 64, starter) == KNOWN


async def test_the_text_names_the_lists_that_hold_something():
    assert KNOWN.text == "A trip.\nNames: Maya Lindgren; Uppsala"
