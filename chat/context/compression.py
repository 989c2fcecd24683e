"""Older turns become a summary: before a reply when the window fills up, and by hand.

A summary is stored whole, in one transaction, and only then anything is sent by it: a process that dies half-way has
lost nothing but its work. Of two that compress one conversation at once, one wins and the other gets its summary.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import UUID
from weakref import WeakValueDictionary

from chat.attachments import Attachment
from chat.context import ledger
from chat.context.ledger import Ledger
from chat.models import Conversation, ConversationError, Message, Summary
from localllm.gateway import completions, database, serving, summaries
from localllm.gateway.models.usage import subject
from localllm.gateway.providers import local
from localllm.inference.compression import Compressed, CompressionError, KeyFacts
from localllm.inference.errors import ContextOverflow, ProviderError
from localllm.inference.summarise import Progress
from localllm.inference.types import Loading
from localllm.inference.types import Message as Turn

log = logging.getLogger(__name__)

MIN_BUDGET, MAX_BUDGET = 64, 1024  # tokens of a summary; between them an eighth of the window
ROOM_TO_GO_ON = 64  # tokens that an answer under way must still be able to get
MARKUP_TOKENS = 16  # more than a chat template puts around a message
TEMPLATE_TOKENS = 200  # more than it adds by itself, such as a date

_locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
_by_hand: dict[UUID, asyncio.Task[Summary]] = {}


async def make_room(reply: Message) -> AsyncGenerator[Loading | Progress]:
    """Before a reply is written: summarise older turns if the conversation has reached its threshold.

    Raises ContextOverflow when the question alone is too long. Whatever else goes wrong, the originals are sent.
    """
    conversation = await database.read(_read, reply.conversation_id)
    plan = await database.read(conversation.context, reply.parent_id)
    async with aclosing(serving.loading(plan.model)) as loading:
        async for event in loading:
            yield event
    window = (await local.info(plan.model.local())).window
    num_bytes = sum(len(turn.content.encode()) + MARKUP_TOKENS for turn in plan.messages)
    if num_bytes + TEMPLATE_TOKENS <= window // 2:
        return  # a token has a byte or more, and no threshold is lower: no need to count
    try:
        async with _lock(conversation.pk):
            account = await ledger.take(conversation, reply=reply, loads=True)
            _refuse_a_question_too_long(account)
            if not await database.read(_is_due, conversation, account, reply):
                return
            up_to_id = _first_part(account)
            if up_to_id is None:
                return
            async with aclosing(_summarise(conversation, up_to_id, account.plan.summary)) as items:
                async for item in items:
                    if isinstance(item, Progress):
                        yield item
    except ContextOverflow:
        raise
    except ProviderError as exc:
        log.warning("Conversation %s was not compressed: %s", conversation.pk, exc)


def start(conversation_id: UUID, *, again: bool = False) -> asyncio.Task[Summary]:
    """Compress by hand, or write the summary `again`, as a task of the server; the one under way if there is one."""
    task = _by_hand.get(conversation_id)
    if task is None:
        task = asyncio.create_task(_compress(conversation_id, again), name=f"summary of {conversation_id}")
        _by_hand[conversation_id] = task
        task.add_done_callback(lambda _: _by_hand.pop(conversation_id, None))
    return task


def is_under_way(conversation_id: UUID) -> bool:
    """Whether a compression by hand is being written."""
    return conversation_id in _by_hand


def cancel(conversation_id: UUID) -> None:
    """End the compression by hand that is under way, if there is one; nothing of it is kept."""
    if task := _by_hand.get(conversation_id):
        task.cancel()


async def _compress(conversation_id: UUID, again: bool) -> Summary:
    async with _lock(conversation_id):
        conversation = await database.read(_read, conversation_id)
        up_to_id, previous, pins = await database.read(_by_hand_of, conversation, again)
        async with aclosing(_summarise(conversation, up_to_id, previous, pins)) as items:
            async for item in items:
                if isinstance(item, Summary):
                    return item
    raise AssertionError("A compression ends with a summary or an error.")


def _read(conversation_id: UUID) -> Conversation:
    return Conversation.objects.select_related("model", "owner", "schema", "template").get(pk=conversation_id)


def _lock(conversation_id: UUID) -> asyncio.Lock:
    lock = _locks.get(conversation_id)
    if lock is None:
        lock = _locks[conversation_id] = asyncio.Lock()
    return lock


def _refuse_a_question_too_long(account: Ledger) -> None:
    question = account.plan.turns[-1].message
    num_tokens = account.by_message[question.pk]
    if num_tokens + account.parts["system"] >= account.window:
        raise ContextOverflow(
            f"Your message alone has {num_tokens} tokens, and the context of this model holds {account.window} "
            "with the answer. Attach the text as a file to have it summarised or searched, shorten the message, or "
            "choose a model with a larger context."
        )


def _is_due(conversation: Conversation, account: Ledger, reply: Message) -> bool:
    """Is the threshold reached? After an undo only once the conversation would not fit any more.

    An answer that goes on is asked as it was begun, as long as there is room to go on.
    """
    if not conversation.compress_at:
        return False
    num_tokens = account.num_tokens + len(reply.text.encode()) // ledger.BYTES_PER_TOKEN
    if reply.text or reply.reasoning:
        return num_tokens + ROOM_TO_GO_ON > account.window
    if any(not file.is_settled for file in Attachment.objects.filter(message__children=reply)):
        num_tokens += account.window // ledger.UNKNOWN_SHARE  # what is to stand for a file is not written yet
    if num_tokens + account.reserve > account.window:
        return True
    has_undone = conversation.has_undone(conversation.path(reply.parent_id))
    return not has_undone and num_tokens > account.window * conversation.compress_at / 100


def _first_part(account: Ledger) -> UUID | None:
    """The last message to be summarised, so that afterwards half of what may be filled is free; None if there is none.

    What stays in full begins with a message of the user.
    """
    turns = account.plan.turns
    room = (account.window - account.reserve) // 2 - account.parts["system"] - budget_of(account.window)
    at = len(turns) - 1
    room -= account.by_message[turns[at].message.pk]
    while at > 0 and not turns[at - 1].is_covered:
        room -= account.by_message[turns[at - 1].message.pk] if turns[at - 1].state == "full" else 0
        if room < 0:
            break
        at -= 1
    while at < len(turns) - 1 and turns[at].message.role != "user":
        at += 1
    return turns[at - 1].message.pk if at > 0 and not turns[at - 1].is_covered else None


def _by_hand_of(conversation: Conversation, again: bool) -> tuple[UUID, Summary | None, KeyFacts | None]:
    """Up to where, built on what, and which facts are to be carried on."""
    conversation.refuse_while_answering()
    plan = conversation.context()
    if again:
        if plan.summary is None:
            raise ConversationError("There is no summary to be written again.")
        return plan.summary.up_to_id, plan.summary.previous, plan.summary.facts.carried()
    last_question = max((at for at, turn in enumerate(plan.turns) if turn.message.role == "user"), default=0)
    older = [turn.message for turn in plan.turns[:last_question] if not turn.is_covered]
    if not any(message.placement in ("automatic", "expanded") for message in older):
        raise ConversationError(
            "There is nothing to summarise yet: the last question and its answer stay in full, and so do pinned ones."
        )
    return older[-1].pk, plan.summary, None


async def _summarise(
    conversation: Conversation, up_to_id: UUID, previous: Summary | None, pins: KeyFacts | None = None
) -> AsyncGenerator[Progress | Summary]:
    """Make the summary up to there, and store it; the last item is the one that holds."""
    found = await database.read(conversation.summarised_by, up_to_id, previous)
    if not found:
        raise CompressionError("There is nothing to summarise: all older messages are pinned or left out.")
    model = await database.read(conversation.resolved_model)
    version = await summaries.template("compression", model, subject(conversation.pk))
    window = (await local.info(model.local())).window
    based_on = await database.read(lambda: conversation.summary_on(conversation.path(up_to_id)))
    known = previous.facts if previous else KeyFacts()
    items = summaries.compress(
        [Turn(message.role, message.content) for message in found],  # type: ignore[arg-type]
        model,
        version,
        completions.Asker(source="chat", user=conversation.owner, conversation_id=conversation.pk),
        budget_of(window),
        previous=known.with_carried(pins) if pins else known,
        owner=f"user:{conversation.owner_id}",
    )
    async with aclosing(items):
        async for item in items:
            if isinstance(item, Compressed):
                new = Summary(
                    conversation=conversation,
                    up_to_id=up_to_id,
                    previous=previous,
                    num_messages=len(found),
                    tokens_before=item.num_tokens_before,
                    model_name="" if item.is_quoted else model.name,
                    template_version=None if item.is_quoted else version,
                )
                new.say(item.facts, item.num_tokens)
                yield await database.store(conversation.keep_summary, new, based_on)
            else:
                yield item


def budget_of(window: int) -> int:
    """How long a summary may get, in tokens."""
    return max(MIN_BUDGET, min(MAX_BUDGET, window // 8))
