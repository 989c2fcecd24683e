"""The account of the window: how many tokens each part of a conversation takes, counted by its model.

Exact are the whole prompt, rendered by the model's chat template, and each text by itself; what the prompt has beyond
its texts is the template's. A model that is not loaded is not loaded to count: then it is an estimate, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal
from uuid import UUID

from chat.attachments import Attachment, compose
from chat.context.plan import Plan, PlannedTurn
from chat.models import Conversation, Message
from localllm.gateway import database, serving
from localllm.gateway.models import LanguageModel
from localllm.gateway.providers import local
from localllm.gateway.summaries import LocalCounter
from localllm.inference import chunking
from localllm.inference.errors import ContextOverflow
from localllm.inference.structured import instruct
from localllm.inference.types import ChatRequest
from localllm.inference.types import Message as Turn

Kind = Literal["system", "summary", "turns", "attachments", "draft", "template", "reserve", "free"]

TITLES: dict[Kind, str] = {
    "system": "System prompt",
    "summary": "Summary",
    "turns": "Messages in full",
    "attachments": "Attachments",
    "draft": "What you are writing",
    "template": "Chat template and schema",
    "reserve": "Kept for the answer",
    "free": "Free",
}
BYTES_PER_TOKEN = 4  # of English in most vocabularies; for estimates only
UNKNOWN_SHARE = 4  # of the window, for files whose passages or summary are not made yet
SCALE = 1000  # units of the whole bar


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of the bar, in thousandths of its width."""

    kind: Kind
    num_tokens: int
    at: float
    width: float

    @property
    def title(self) -> str:
        return TITLES[self.kind]


@dataclass(frozen=True)
class Ledger:
    """`num_tokens` is the prompt; `by_message` counts every message, sent or not."""

    plan: Plan
    window: int
    reserve: int
    parts: dict[Kind, int]
    by_message: dict[UUID, int]
    num_tokens: int
    is_exact: bool

    @property
    def free(self) -> int:
        """Negative: so many tokens too many."""
        return self.window - self.num_tokens - self.reserve

    @property
    def can_summarise(self) -> bool:
        """Are there messages that a summary does not stand for yet, and may it?"""
        new = (turn.message for turn in self.plan.turns if not turn.is_covered)
        return any(message.placement in ("automatic", "expanded") for message in new)

    @property
    def share(self) -> int:
        """Percent of the window that the prompt takes."""
        return round(100 * self.num_tokens / self.window)

    @cached_property
    def segments(self) -> list[Segment]:
        sizes = {**self.parts, "reserve": self.reserve, "free": max(0, self.free)}
        total = sum(sizes.values()) or 1
        segments, at = [], 0.0
        for kind in TITLES:
            if num_tokens := sizes.get(kind, 0):
                width = SCALE * num_tokens / total
                segments.append(Segment(kind, num_tokens, round(at, 2), round(width, 2)))
                at += width
        return segments

    @property
    def turns(self) -> list[tuple[PlannedTurn, int]]:
        return [(turn, self.by_message[turn.message.pk]) for turn in self.plan.turns]


@dataclass(frozen=True, slots=True)
class Draft:
    """What is being written: a text, and the files beside it, not stored yet."""

    text: str = ""
    attachments: tuple[Attachment, ...] = ()

    @property
    def content(self) -> str:
        """As the model would read it; passages and summaries are not known before it is sent."""
        return compose(self.text, self.attachments)

    @property
    def num_unknown(self) -> int:
        return sum(not each.is_settled for each in self.attachments)


NO_DRAFT = Draft()


async def take(
    conversation: Conversation, *, draft: Draft = NO_DRAFT, reply: Message | None = None, loads: bool = False
) -> Ledger:
    """The account of what would be sent with `draft`, or of what is sent for `reply`.

    With `loads` the model is loaded if need be. Raises ProviderError.
    """
    plan, version, max_tokens = await database.read(_read, conversation, reply)
    messages = _sent(plan, draft.content, version)
    if not loads and serving.state(plan.model).state != "ready":
        return _estimate(plan, draft, max_tokens)
    counter = LocalCounter(plan.model.local())
    by_message = await _count_messages(plan, counter)
    texts = {"system": plan.system, "summary": "".join(turn.content for turn in plan.recap), "draft": draft.text}
    parts: dict[str, int] = dict(zip(texts, await chunking.counts(list(texts.values()), counter), strict=True))
    parts |= await _split(plan, by_message, counter)
    parts["attachments"] += await chunking.count(draft.content, counter) - parts["draft"]
    num_tokens = sum(parts.values())
    is_exact = not draft.num_unknown
    try:
        parts["template"] = max(0, await counter.messages(messages) - num_tokens) if messages else 0
    except ContextOverflow:  # so far beyond the window that nobody renders it
        is_exact = False
    info = await local.info(plan.model.local())
    parts["attachments"] += min(1, draft.num_unknown) * info.window // UNKNOWN_SHARE
    return _ledger(plan, info.window, max_tokens, parts, by_message, is_exact)


def sent(conversation: Conversation, draft: Draft) -> tuple[LanguageModel, tuple[Turn, ...]]:
    """What would be sent with `draft`, and to which model."""
    plan, version, _ = _read(conversation, None)
    return plan.model, _sent(plan, draft.content, version)


def _read(conversation: Conversation, reply: Message | None) -> tuple[Plan, Any, int | None]:
    plan = conversation.context(reply.parent_id if reply else None)
    schema = conversation.schema
    version = reply.schema_version if reply else schema and schema.current
    max_tokens = version.max_tokens if version else conversation.sampling(plan.model).max_tokens
    return plan, version, max_tokens


def _sent(plan: Plan, draft: str, version: Any) -> tuple[Turn, ...]:
    messages = (*plan.messages, Turn("user", draft)) if draft else plan.messages
    if version is None or not messages:
        return messages
    asked = version.applied_to(ChatRequest(messages=messages))
    return instruct(asked.messages, version.text, version.schema.description)


async def _count_messages(plan: Plan, counter: LocalCounter) -> dict[UUID, int]:
    """Tokens of every message. Each is counted once for each model, and then known by its row."""
    messages = [turn.message for turn in plan.turns]
    keys = {message.pk: message.counted_by(plan.model) for message in messages}
    unknown = [message for message in messages if message.tokens_key != keys[message.pk]]
    for message, count in zip(unknown, await chunking.counts([m.content for m in unknown], counter), strict=True):
        message.num_tokens, message.tokens_key = count, keys[message.pk]
    settled = [message for message in unknown if not message.is_live]
    if settled:
        await database.write(Message.objects.bulk_update, settled, ["num_tokens", "tokens_key"], batch_size=200)
    return {message.pk: message.num_tokens or 0 for message in messages}


async def _split(plan: Plan, by_message: dict[UUID, int], counter: LocalCounter) -> dict[str, int]:
    """What the messages in full take, their attachments apart."""
    with_files = [message for message in plan.in_full if message.content != message.text]
    own = await chunking.counts([message.text for message in with_files], counter)
    attached = sum(by_message[message.pk] for message in with_files) - sum(own)
    return {"turns": sum(by_message[message.pk] for message in plan.in_full) - attached, "attachments": attached}


def _estimate(plan: Plan, draft: Draft, max_tokens: int | None) -> Ledger:
    """From the last known counts, and from lengths."""
    by_message = {turn.message.pk: turn.message.num_tokens or _guess(turn.message.content) for turn in plan.turns}
    parts = {
        "system": _guess(plan.system),
        "summary": sum(_guess(turn.content) for turn in plan.recap),
        "turns": sum(by_message[message.pk] for message in plan.in_full),
        "draft": _guess(draft.text),
        "attachments": _guess(draft.content) - _guess(draft.text),
    }
    windows = [turn.message.window for turn in plan.turns if turn.message.window]
    return _ledger(plan, windows[-1] if windows else plan.model.n_ctx, max_tokens, parts, by_message, is_exact=False)


def _guess(text: str) -> int:
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def _ledger(
    plan: Plan, window: int, max_tokens: int | None, parts: Any, by_message: dict[UUID, int], is_exact: bool
) -> Ledger:
    reserve = min(max_tokens or window // 4, window // 2)
    return Ledger(plan, window, reserve, parts, by_message, sum(parts.values()), is_exact)
