"""Key facts by plain rules: what they find, and that they keep what a summary promises."""

import pytest

from localllm.inference.compression import CompressionError, Fact, KeyFacts
from localllm.inference.quoting import key_facts, quote
from localllm.inference.types import Message

TURNS = [
    Message("user", "My sister Maya Lindgren turns 40 on 14 March. Which ferry goes to Utö?"),
    Message("assistant", "The ferry to Utö leaves from Årsta brygga at 9:40. It takes about an hour."),
]
pytestmark = pytest.mark.asyncio


class Words:
    """A counter for which a word is a token."""

    async def texts(self, texts):
        return [len(text.split()) for text in texts]


WORDS = Words()


def texts(facts):
    return [fact.text for fact in facts]


async def test_it_takes_names_figures_and_questions_as_they_were_said():
    facts = key_facts(TURNS)
    assert texts(facts.names) == ["Utö", "Årsta", "Maya Lindgren", "March"]
    assert texts(facts.numbers) == ["Årsta brygga at 9:40", "Maya Lindgren turns 40 on 14 March"]
    assert texts(facts.open_questions) == ["Which ferry goes to Utö?"]


@pytest.mark.parametrize("budget", [8, 24, 60])
async def test_the_budget_holds_and_the_newest_facts_stay(budget):
    turns = [Message("user", f"Day {n} costs {n * 7} euros for Maya. What else?") for n in range(40)]
    made = await quote(turns, WORDS, budget_tokens=budget)
    assert made.num_tokens <= budget and made.is_quoted
    assert not made.facts.numbers or "39" in made.facts.numbers[0].text


async def test_the_facts_before_follow_and_pinned_ones_stand_first():
    previous = KeyFacts(names=(Fact("Farah"), Fact("Jonas", is_pinned=True)))
    made = await quote(TURNS * 4, WORDS, previous=previous, budget_tokens=200)
    assert made.facts.names[0] == Fact("Jonas", is_pinned=True) and made.facts.names[-1] == Fact("Farah")


async def test_where_nothing_is_found_the_messages_stay():
    with pytest.raises(CompressionError, match="Nothing was found to keep"):
        await quote([Message("user", "hello there, how nice this is")] * 20, WORDS, budget_tokens=50)
