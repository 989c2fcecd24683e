"""How much of a file fits beside a conversation, and what stands for it in the prompt. Joins rows with the engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from chat.attachments import Attachment, File, compose
from chat.models import Conversation, Message
from localllm.gateway import database, summaries
from localllm.gateway.completions import Asker
from localllm.gateway.models import LanguageModel, PromptTemplateVersion
from localllm.gateway.providers import local
from localllm.gateway.summaries import LocalCounter
from localllm.inference import chunking
from localllm.inference.documents import passages
from localllm.inference.errors import ContextOverflow
from localllm.inference.summarise import Progress
from localllm.inference.types import Chunk
from localllm.inference.types import Message as Turn

ANSWER_TOKENS = 512  # kept free for the answer where the chat does not say how long it may get
LEAST_SHARE = 48  # tokens of a file; with less it says nothing
LEAST_CHARS = 120  # of all passages together
PASSAGES_TOKENS = 2_000  # of all passages of a question: more takes long to read, and seldom helps
SUMMARY_TOKENS = 1_000  # of one file, and at most a quarter of the window: its parts must fit beside it
QUESTION_TOKENS = 128  # kept free for the question while it is not written yet
CHARS_PER_TOKEN = 3.0  # a careful guess, for when the model is not loaded
SAMPLE_CHARS = 4_000
FOCUS_CHARS = 500  # of the question, for a summary to pay attention to


@dataclass(frozen=True, slots=True)
class Fit:
    """A file beside the conversation that it is to be sent in; `cut_at` is where it is cut, None: it fits."""

    file: File
    num_tokens: int
    is_exact: bool
    cut_at: int | None

    @property
    def size(self) -> str:
        return f"{'' if self.is_exact else 'about '}{self.num_tokens:,} tokens"

    @property
    def cut(self) -> str:
        return self.file.cut(self.cut_at) if self.cut_at else ""


async def fit(file: File, conversation: Conversation, model: LanguageModel, beside: Sequence[File] = ()) -> Fit:
    """`beside` are files that are sent along in full. Exact once the model is loaded, a guess until then."""
    host = local.loaded(model.local())
    if host is None or host.info is None or host.state != "ready":
        room = int(model.n_ctx * 0.5 - sum(each.num_chars for each in beside) / CHARS_PER_TOKEN)
        num_tokens = int(file.num_chars / CHARS_PER_TOKEN) + 1
        cut_at = max(1, int(room * CHARS_PER_TOKEN)) if num_tokens > room else None
        return Fit(file, num_tokens, False, cut_at)
    counter = LocalCounter(model.local())
    turns = (await database.read(conversation.context)).messages
    room = await _room(host.info.window, turns, conversation, model) - QUESTION_TOKENS
    room -= sum([await chunking.count(each.text, counter) for each in beside])
    num_tokens = await chunking.count(file.text, counter)
    if num_tokens <= room:
        return Fit(file, num_tokens, True, None)
    beginning = file.text[: max(room, LEAST_SHARE) * 8]
    kept = (await chunking.chunks(beginning, max(room, LEAST_SHARE), counter))[0]
    return Fit(file, num_tokens, True, len(kept.rstrip()) or 1)


async def settle(reply: Message) -> AsyncGenerator[float]:
    """Choose the passages and write the summaries that the question of `reply` is to be asked with, and store them.

    Yields how far it is, from 0 to 1. What is stored stays, so a reply that goes on is asked the same. Raises
    ProviderError.
    """
    task = await database.read(_Task.of, reply)
    if task is None:
        return
    info = await local.info(task.model.local())
    room = await _room(info.window, task.turns, task.conversation, task.model)
    share = room // (len(task.to_summarise) + bool(task.to_search))
    if share < LEAST_SHARE:
        raise _no_room(room, info.window)
    for number, attachment in enumerate(task.to_summarise):
        async for fraction in _summarise(attachment, task, min(share, SUMMARY_TOKENS, info.window // 4)):
            yield (number + fraction) / len(task.to_summarise)
    if task.to_search and not await _search(task, min(share, PASSAGES_TOKENS)):
        raise _no_room(room, info.window)


def _no_room(room: int, window: int) -> ContextOverflow:
    return ContextOverflow(
        f"The conversation leaves {max(0, room)} of {window} tokens for the attached files, which is too few. "
        "Begin a new chat with them, or choose a model with a larger context."
    )


@dataclass(frozen=True, slots=True)
class _Task:
    """What is still to be known before a question can be asked."""

    question: Message
    conversation: Conversation
    model: LanguageModel
    turns: tuple[Turn, ...]
    to_summarise: list[Attachment]
    to_search: list[Attachment]
    first_number: int

    @classmethod
    def of(cls, reply: Message) -> _Task | None:
        attachments = Attachment.objects.filter(message__children=reply).select_related("file", "message")
        unsettled = [each for each in attachments if not each.is_settled]
        if not unsettled:
            return None
        conversation = Conversation.objects.select_related("model", "owner").get(pk=reply.conversation_id)
        model = conversation.resolved_model()
        return cls(
            question=unsettled[0].message,
            conversation=conversation,
            model=model,
            turns=conversation.context(reply.parent_id).messages,
            to_summarise=[each for each in unsettled if each.mode == "summary"],
            to_search=[each for each in unsettled if each.mode == "passages"],
            first_number=conversation.next_passage_number(conversation.path(reply.parent_id)),
        )


async def _room(window: int, turns: tuple[Turn, ...], conversation: Conversation, model: LanguageModel) -> int:
    """Tokens that the window still holds beside the conversation and its answer."""
    used = await local.count(model.local(), turns) if turns else 0
    answer = conversation.sampling(model).max_tokens or ANSWER_TOKENS
    return window - used - min(answer, window // 4)


async def _summarise(attachment: Attachment, task: _Task, max_tokens: int) -> AsyncGenerator[float]:
    owner = task.conversation.owner
    asker = Asker(source="chat", user=owner, conversation_id=task.conversation.pk)
    summary, fraction = "", 0.0
    events = summaries.summarise(
        attachment.file.text,
        task.model,
        asker,
        max_tokens,
        focus=task.question.text[:FOCUS_CHARS],
        owner=f"user:{owner.pk}",
    )
    async with aclosing(events):
        async for event in events:
            match event:
                case Progress(num_done=done, num_parts=parts):
                    fraction = done / parts
                case Chunk(text=text):
                    summary += text
            yield fraction
    attachment.summary = summary.strip() or "(The summary is empty.)"
    await database.store(attachment.save, update_fields=["summary"])


async def _search(task: _Task, max_tokens: int) -> bool:
    """Choose as many passages as fit, and store them; False where not even one does."""
    version = await summaries.template("rag_query", task.model)
    texts = [each.file.text for each in task.to_search]
    counter = LocalCounter(task.model.local())
    sample = texts[0][:SAMPLE_CHARS]
    (num_tokens,) = await counter.texts([sample])
    max_chars = max_tokens * len(sample) // max(1, num_tokens)
    while True:
        chosen = await database.read(passages.choose, texts, task.question.text, max_chars)
        _put(task, chosen, version)
        (num_tokens,) = await counter.texts([compose("", task.to_search)])
        if num_tokens <= max_tokens:
            await database.store(Attachment.objects.bulk_update, task.to_search, ["passages", "template_version"])
            return True
        max_chars = max_chars * 3 // 4
        if max_chars < LEAST_CHARS:
            return False


def _put(task: _Task, chosen: list[passages.Passage], version: PromptTemplateVersion) -> None:
    for each in task.to_search:
        each.passages, each.template_version = [], version
    for number, passage in enumerate(chosen, task.first_number):
        task.to_search[passage.document].passages.append([number, passage.start, passage.end])
