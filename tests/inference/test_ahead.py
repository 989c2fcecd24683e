"""The beginning of the next turn is computed while nobody asks for anything."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from localllm.inference.engine.host import EngineHost
from localllm.inference.types import Message
from tests.inference.engine_on_starter import StarterEngine, prompt
from tests.inference.test_constrained_engine import PERSON
from tests.inference.test_thinking import asked, host, read

__all__ = ["host"]

QUESTION, NEXT_QUESTION = "Who are you?", "What can you do?"


class Talk:
    """Two turns of a conversation on the starter, with idle time between them."""

    def __init__(self, *, num_slots: int = 4) -> None:
        self.starter = StarterEngine(num_slots=num_slots)
        self.first = self.starter.ask(prompt(QUESTION), next_prompt=self.next_prompt)
        self.starter.run()

    @property
    def follow_up(self) -> str:
        return prompt(QUESTION, self.first.text, NEXT_QUESTION)

    def tokens(self, text: str) -> list[int]:
        return self.starter.runner.tokenize(text, special=True)

    def next_prompt(self) -> list[int]:
        return self.tokens(self.follow_up.partition(NEXT_QUESTION)[0])

    def num_computed(self) -> int:
        """Tokens that the second turn had to compute."""
        second = self.starter.ask(self.follow_up)
        self.starter.run()
        usage = second.finished.usage
        return usage.prompt_tokens - usage.reused_tokens


def test_the_next_turn_computes_only_what_the_user_wrote():
    talk = Talk()
    talk.starter.engine.use_idle_time()
    new = len(talk.tokens(talk.follow_up)) - len(talk.next_prompt())
    assert talk.num_computed() == new + 1  # the last token before it might have merged with it


def test_without_idle_time_it_also_computes_what_comes_between_two_turns():
    talk = Talk()
    assert talk.num_computed() > len(talk.tokens(talk.follow_up)) - len(talk.next_prompt()) + 1


def test_the_answer_is_the_same():
    texts = []
    for is_prepared in (False, True):
        talk = Talk()
        if is_prepared:
            talk.starter.engine.use_idle_time()
        second = talk.starter.ask(talk.follow_up)
        talk.starter.run()
        texts.append(second.text)
    assert texts[0] == texts[1]


def test_it_gives_way_to_whoever_asks_and_loses_nothing():
    talk = Talk()
    before = talk.starter.scheduler.slots[0].cached
    talk.starter.engine._inbox.put(None)
    talk.starter.engine.use_idle_time()
    assert talk.starter.scheduler.slots[0].cached == before
    assert talk.num_computed() == len(talk.tokens(talk.follow_up)) - len(before)


def test_it_leaves_a_slot_alone_that_another_conversation_has_taken():
    talk = Talk(num_slots=1)
    talk.starter.ask(prompt("What is a token?"), owner="bob")
    talk.starter.run()
    before = talk.starter.scheduler.slots[0].cached
    talk.starter.engine.use_idle_time()
    assert talk.starter.scheduler.slots[0].cached == before


@pytest.mark.parametrize("tokens", [[], [5], [5] * 40, [5] * 5000])
def test_it_keeps_what_is_computed_where_the_next_prompt_does_not_go_on_from_it(tokens):
    starter = StarterEngine()
    starter.ask(prompt(QUESTION), next_prompt=lambda: tokens)
    starter.run()
    before = starter.scheduler.slots[0].cached
    starter.engine.use_idle_time()
    assert starter.scheduler.slots[0].cached == before


async def test_a_thinking_model_has_read_its_answer_before_the_user_replies(host: EngineHost):
    for seconds in (0.5, 1, 2, 4, 8):  # on a machine that is busy the idle time comes late
        request = asked(PERSON, seed=int(seconds * 2))
        reasoning, answer, first = await read(host, request)
        await asyncio.sleep(seconds)
        messages = (*request.messages, Message("assistant", answer), Message("user", "Thanks."))
        _, _, second = await read(host, msgspec.structs.replace(request, messages=messages))
        if second.usage.reused_tokens > first.usage.prompt_tokens:
            break
    assert reasoning
    assert second.usage.prompt_tokens - second.usage.reused_tokens < 20
