"""What is sent of a conversation: the one truth behind the request to the model and the ledger that shows it.

Knows rows as they were read, and asks for no others; nothing of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from localllm.gateway.models import LanguageModel
from localllm.inference.types import Message as Turn

if TYPE_CHECKING:
    from chat.models import Message, Summary

State = Literal["full", "summarised", "excluded"]

# The summary is an exchange of its own, so that user and assistant still take turns: some templates insist.
RECAP = "Before we go on: what was said so far, in short?"


@dataclass(frozen=True, slots=True)
class PlannedTurn:
    message: Message
    state: State
    is_covered: bool  # the summary stands for it, though it may be in full as well


@dataclass(frozen=True, slots=True)
class Plan:
    """System prompt, summary, turns, in the order they are sent: the part that changes least stands first.

    So the KV cache of the system prompt outlasts every compression, and that of all the rest every new turn.
    """

    model: LanguageModel
    system: str
    summary: Summary | None
    turns: tuple[PlannedTurn, ...]

    @property
    def in_full(self) -> list[Message]:
        return [turn.message for turn in self.turns if turn.state == "full"]

    @property
    def recap(self) -> tuple[Turn, ...]:
        return (Turn("user", RECAP), Turn("assistant", self.summary.text)) if self.summary else ()

    @property
    def messages(self) -> tuple[Turn, ...]:
        system = (Turn("system", self.system),) if self.system else ()
        turns = (Turn(message.role, message.content) for message in self.in_full)  # type: ignore[arg-type]
        return (*system, *self.recap, *turns)


def plan(model: LanguageModel, system: str, summary: Summary | None, branch: list[Message]) -> Plan:
    """Decide for each message of a branch whether it is sent. The last one is what is asked: it always is."""
    ids = [message.pk for message in branch]
    num_covered = ids.index(summary.up_to_id) + 1 if summary else 0
    turns = []
    for at, message in enumerate(branch):
        if message.content:
            is_covered, is_last = at < num_covered, at == len(branch) - 1
            turns.append(PlannedTurn(message, _state(message, is_covered, is_last), is_covered))
    return Plan(model, system, summary, tuple(turns))


def _state(message: Message, is_covered: bool, is_last: bool) -> State:
    if message.placement == "excluded" and not (is_last and message.role == "user"):
        return "excluded"
    return "summarised" if is_covered and message.placement == "automatic" else "full"
