"""Conversations as trees of messages, and the verbs on them. Knows rows; nothing of sockets or engines."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from django.db import models, transaction
from django.db.models import Prefetch
from django.db.models.functions import Concat
from django.utils import timezone

from chat.attachments import Attachment, File, FileChoice, Passage, compose
from chat.context.plan import Plan, plan
from localllm.gateway.models import Feedback, LanguageModel, PromptTemplate, PromptTemplateVersion
from localllm.gateway.models.prompt_template import chat_variables
from localllm.gateway.models.usage import subject
from localllm.inference.compression import TITLES, Fact, KeyFacts
from localllm.inference.types import ChatRequest, SamplingParams, Usage

MAX_TEXT_BYTES = 200_000  # UTF-8; a websocket frame holds 256 KiB, and JSON escapes need room
TITLE_CHARS = 60
MAX_FOLDER = 60  # characters
COMPRESS_AT = [(0, "Never"), *((share, f"At {share} % of the window") for share in (50, 75, 90))]

__all__ = ["Attachment", "Conversation", "ConversationError", "File", "Message"]


class ConversationError(Exception):
    """The conversation cannot do that now; `str(exc)` is for the user."""


@dataclass(frozen=True, slots=True)
class Versions:
    """Where a message stands among its siblings, as in `‹ 2/3 ›`."""

    number: int
    count: int
    previous_id: uuid.UUID | None
    next_id: uuid.UUID | None


class ConversationQuerySet(models.QuerySet["Conversation"]):
    def owned_by(self, user: User | AnonymousUser) -> ConversationQuerySet:
        return self.filter(owner_id=user.pk) if user.pk else self.none()

    def folders(self) -> list[str]:
        """The names of the folders that they are in, in alphabetical order."""
        names = self.exclude(folder="").order_by().values_list("folder", flat=True).distinct()
        return sorted(names, key=lambda name: (name.casefold(), name))

    def rename_folder(self, old: str, new: str) -> None:
        """Move all that is in a folder: to another that may exist already, or out of it where `new` is empty."""
        self.exclude(folder="").filter(folder=old).update(folder=folder_name(new))


def folder_name(text: str) -> str:
    """As it is stored: one line, single spaces. Raises ConversationError."""
    name = " ".join(text.replace("\x00", "").split())
    if len(name) > MAX_FOLDER:
        raise ConversationError(
            f"The name has {len(name):,} characters; that of a folder has at most {MAX_FOLDER}. Shorten it."
        )
    return name


class Conversation(models.Model):
    """A tree of messages; `leaf` is the last message of the branch that is shown."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="conversations")
    title = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(default=timezone.now, db_index=True)
    is_pinned = models.BooleanField(default=False)
    is_archived = models.BooleanField(default=False)
    folder = models.CharField(max_length=MAX_FOLDER, blank=True)  # which exists while something is in it
    leaf = models.ForeignKey("Message", null=True, blank=True, on_delete=models.SET_NULL, related_name="+")

    # Empty means: as the model has it
    model = models.ForeignKey(LanguageModel, null=True, blank=True, on_delete=models.SET_NULL)
    schema = models.ForeignKey("schemas_app.Schema", null=True, blank=True, on_delete=models.SET_NULL)
    template = models.ForeignKey(PromptTemplate, null=True, blank=True, on_delete=models.SET_NULL)
    system_prompt = models.TextField(blank=True)
    temperature = models.FloatField(null=True, blank=True)
    top_p = models.FloatField(null=True, blank=True)
    top_k = models.PositiveIntegerField(null=True, blank=True)
    min_p = models.FloatField(null=True, blank=True)
    repeat_penalty = models.FloatField(null=True, blank=True)
    max_tokens = models.PositiveIntegerField(null=True, blank=True)
    seed = models.PositiveIntegerField(null=True, blank=True)

    compress_at = models.PositiveSmallIntegerField(
        "summarise older messages",
        default=75,
        choices=COMPRESS_AT,
    )

    objects = ConversationQuerySet.as_manager()

    class Meta:
        ordering = ("-updated_at",)

    def __str__(self) -> str:
        return self.title or "New chat"

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        """With all that was written in it. Thumbs stay, for the experiments; their notes go."""
        Feedback.objects.filter(conversation_id=self.pk).update(note="")
        return super().delete(*args, **kwargs)

    # Reading

    def path(self, leaf_id: uuid.UUID | None = None) -> list[uuid.UUID]:
        """Ids of the messages from the first one to `leaf_id` (the conversation's leaf by default)."""
        parents = dict(self._tree())
        path, at = [], leaf_id or self.leaf_id
        while at is not None:
            path.append(at)
            at = parents[at]
        return path[::-1]

    def branch(self, path: list[uuid.UUID] | None = None, *, reads_files: bool = False) -> list[Message]:
        """The messages of `path`, or of a part of it, each with its `versions`; with `reads_files` for the model."""
        path = self.path() if path is None else path
        siblings: dict[uuid.UUID | None, list[uuid.UUID]] = {}
        for id, parent_id in self._tree():
            siblings.setdefault(parent_id, []).append(id)
        messages = self.messages.select_related("schema_version__schema")
        attachments = Attachment.objects.read() if reads_files else Attachment.objects.shown()
        rows = messages.prefetch_related(Prefetch("attachments", attachments)).in_bulk(path)
        branch = [rows[id] for id in path]
        for message in branch:
            message.versions = _versions(message.pk, siblings[message.parent_id])
        return branch

    def _tree(self) -> list[tuple[uuid.UUID, uuid.UUID | None]]:
        """(id, parent id) of every message, oldest first. Of 2,000 messages the texts would take too long."""
        return list(self.messages.order_by("created_at").values_list("pk", "parent_id"))

    def passages(self, path: list[uuid.UUID], numbers: Collection[int] | None = None) -> dict[int, Passage]:
        """What the model was shown on `path`, by the numbers it may cite; only of those `numbers` where given."""
        if numbers is not None and not numbers:
            return {}
        on_path = set(path)
        placed = self._attached_passages().values_list("pk", "message_id", "passages")
        holding = [
            pk
            for pk, message_id, passages in placed
            if message_id in on_path and (numbers is None or any(number in numbers for number, *_ in passages))
        ]
        rows = Attachment.objects.shown().filter(pk__in=holding)
        return {passage.number: passage for each in rows for passage in each.shown_passages}

    def next_passage_number(self, path: list[uuid.UUID]) -> int:
        on_path = set(path)
        placed = self._attached_passages().values_list("message_id", "passages")
        return 1 + max((number for id, passages in placed if id in on_path for number, *_ in passages), default=0)

    def _attached_passages(self) -> models.QuerySet[Attachment]:
        return Attachment.objects.filter(message__conversation=self, mode="passages")

    def resolved_model(self) -> LanguageModel:
        """Its own model if that is still enabled, else the default one."""
        if self.model is not None and self.model.is_enabled and not self.model.is_embedding:
            return self.model
        return LanguageModel.objects.default()

    @staticmethod
    def schemas_for(user: User | AnonymousUser) -> models.QuerySet[Any]:
        """The schemas that `user` may choose. The relation is asked: their app lies beside this one, not below."""
        schemas: Any = Conversation._meta.get_field("schema").related_model
        return schemas.objects.visible_to(user).filter(versions__isnull=False).distinct()  # type: ignore[no-any-return]

    def context(self, leaf_id: uuid.UUID | None = None) -> Plan:
        """What is sent of the branch that ends with `leaf_id`, its own leaf by default."""
        model = self.resolved_model()
        path = self.path(leaf_id)
        return plan(model, self.system_text(model), self.summary_on(path), self.branch(path, reads_files=True))

    def summary_on(self, path: list[uuid.UUID]) -> Summary | None:
        """The newest summary that stands for the beginning of `path`."""
        return next((summary for summary in self._summaries_on(path) if not summary.is_undone), None)

    def has_undone(self, path: list[uuid.UUID]) -> bool:
        """Was the newest summary on `path` undone?"""
        return next((summary.is_undone for summary in self._summaries_on(path)), False)

    def _summaries_on(self, path: list[uuid.UUID]) -> list[Summary]:
        on_path = set(path)
        return [summary for summary in self.summaries.order_by("-created_at") if summary.up_to_id in on_path]

    def summarised_by(self, up_to_id: uuid.UUID, previous: Summary | None) -> list[Message]:
        """The messages that a summary up to there is made from: neither in `previous`, nor pinned or excluded."""
        before = set(self.path(previous.up_to_id)) if previous else set()
        branch = self.branch([id for id in self.path(up_to_id) if id not in before], reads_files=True)
        return [m for m in branch if m.content and m.placement in ("automatic", "expanded")]

    def request_for(self, reply: Message) -> ChatRequest:
        """What the model is asked so that `reply` is written, or written on; by its schema where it has one."""
        context = self.context(reply.parent_id)
        request = ChatRequest(
            messages=context.messages,
            params=self.sampling(context.model),
            prefix=reply.text,
            reasoning=reply.reasoning,
            owner=f"user:{self.owner_id}",
        )
        return reply.schema_version.applied_to(request) if reply.schema_version else request

    @cached_property
    def prompt_version(self) -> PromptTemplateVersion | None:
        """What its next answer's system prompt is made by; None where its owner's own text stands alone.

        Looked up once: what is asked and what is logged are the same, whatever is published in between.
        """
        if self.system_prompt and self.template is None:
            return None
        name = self.template.name if self.template and self.template.deleted_at is None else "chat"
        try:
            template = PromptTemplate.objects.named(name, self.resolved_model())
        except PromptTemplate.DoesNotExist:
            return None
        return template.version_for(subject(conversation_id=self.pk))

    def prompt_variables(self, model: LanguageModel) -> dict[str, str]:
        return chat_variables(self.system_prompt or model.system_prompt)

    def system_text(self, model: LanguageModel) -> str:
        """Its system prompt. Raises TemplateError."""
        if self.prompt_version is None:
            return self.system_prompt or model.system_prompt
        return self.prompt_version.render(self.prompt_variables(model))

    def sampling(self, model: LanguageModel) -> SamplingParams:
        def pick(name: str) -> Any:
            own = getattr(self, name)
            return getattr(model, name) if own is None else own

        return SamplingParams(
            temperature=pick("temperature"),
            top_p=pick("top_p"),
            top_k=pick("top_k"),
            min_p=pick("min_p"),
            max_tokens=pick("max_tokens"),
            clips_max_tokens=True,  # a long chat is to be answered, if in fewer tokens
            repeat_penalty=1.0 if self.repeat_penalty is None else self.repeat_penalty,
            seed=self.seed,
            stop=tuple(model.stop),
        )

    # Writing. Each is one transaction, and is acknowledged only after it.

    def move_to_folder(self, name: str) -> None:
        """Into the folder of that name, a new one where there is none yet; out of any where it is empty."""
        self.folder = folder_name(name)
        self.save(update_fields=["folder"])

    def choose_schema(self, schema_id: uuid.UUID | None) -> None:
        """Have the answers to come follow this schema, or none. Stored along with the next one."""
        self.schema_id = schema_id

    def send(self, cid: str, text: str, attachments: Sequence[FileChoice] = ()) -> tuple[Message, Message]:
        """Add a user message and the reply to be written; the same `cid` again changes nothing."""
        return self._ask(cid, text, self.leaf_id, lambda question: Attachment.objects.attach(question, attachments))

    def edit(self, cid: str, message: Message, text: str) -> tuple[Message, Message]:
        """Ask differently: a sibling of a user message, with its files and a reply of its own."""
        if message.role != "user":
            raise ConversationError("Only your own messages can be edited.")
        return self._ask(cid, text, message.parent_id, lambda question: Attachment.objects.copy(message, question))

    def _ask(
        self, cid: str, text: str, parent_id: uuid.UUID | None, attach: Callable[[Message], None]
    ) -> tuple[Message, Message]:
        text = text.replace("\x00", "").strip()
        if not text:
            raise ConversationError("The message is empty. Write something first.")
        if (size := len(text.encode())) > MAX_TEXT_BYTES:
            raise ConversationError(
                f"The message has {size:,} bytes; at most {MAX_TEXT_BYTES:,} are taken. "
                "Attach the text as a file, or shorten it."
            )
        with transaction.atomic():
            if question := self.messages.filter(cid=cid).first():
                return question, question.children.latest("created_at")
            self.refuse_while_answering()
            question = self.messages.create(parent_id=parent_id, role="user", text=text, cid=cid, status="complete")
            try:
                attach(question)
            except ValueError as exc:
                raise ConversationError(str(exc)) from exc
            reply = self._new_reply(question)
            if not self.title:
                self.title = _title_from(text)
                self.save(update_fields=["title"])
        return question, reply

    def regenerate(self, reply: Message) -> Message:
        """Another version of a reply, beside it."""
        if reply.role != "assistant" or reply.parent is None:
            raise ConversationError("Only an answer can be written again.")
        with transaction.atomic():
            self.refuse_while_answering()
            return self._new_reply(reply.parent)

    def continue_reply(self, reply: Message) -> Message:
        """Let a reply that was cut off go on from its text."""
        with transaction.atomic():
            self.refuse_while_answering()
            reply.refresh_from_db()
            if not reply.can_continue:
                raise ConversationError("This answer is complete: there is nothing to continue.")
            reply.status, reply.finish_reason, reply.error, reply.html = "queued", "", "", ""
            reply.save(update_fields=["status", "finish_reason", "error", "html"])
        return reply

    def select(self, message: Message) -> None:
        """Show the branch through `message`, down to its newest end."""
        newest = {parent_id: id for id, parent_id in self._tree()}
        leaf_id = message.pk
        while leaf_id in newest:
            leaf_id = newest[leaf_id]
        self._move_to(self.messages.get(pk=leaf_id))

    def keep_summary(self, new: Summary, based_on: Summary | None) -> Summary:
        """Store a summary made from what `based_on` left; if another one was quicker, that one holds."""
        with transaction.atomic():
            path = self.path(new.up_to_id)
            quicker = self.summary_on(path)
            if quicker is not None and quicker != based_on:
                return quicker
            new.save()
            self.messages.filter(pk__in=path, placement="expanded").update(placement="automatic")
        return new

    def refuse_while_answering(self) -> None:
        if self.messages.filter(status__in=Message.LIVE).exists():
            raise ConversationError("An answer is still being written here. Wait for it, or stop it first.")

    def _new_reply(self, question: Message) -> Message:
        schema = self._usable_schema()
        self.save(update_fields=["schema"])
        reply = self.messages.create(
            parent=question, role="assistant", status="queued", schema_version=schema and schema.current
        )
        self._move_to(reply)
        return reply

    def _usable_schema(self) -> Any:
        if self.schema_id is None:
            return None
        schema = self.schemas_for(self.owner).filter(pk=self.schema_id).first()
        if schema is None:
            raise ConversationError("This schema is gone, or no longer shared with you. Choose another, or none.")
        return schema

    def _move_to(self, leaf: Message) -> None:
        self.leaf, self.updated_at = leaf, timezone.now()
        self.save(update_fields=["leaf", "updated_at"])


class Message(models.Model):
    """One turn. A reply is queued, streams, and ends in one of four states that never change by guessing."""

    LIVE = ("queued", "streaming")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="messages")
    parent = models.ForeignKey("self", null=True, on_delete=models.CASCADE, related_name="children")
    role = models.CharField(max_length=10, choices=[("user", "user"), ("assistant", "assistant")])
    text = models.TextField(blank=True)
    html = models.TextField(blank=True, help_text="The text, rendered and sanitised once it is final.")
    status = models.CharField(
        max_length=12,
        choices=[(s, s) for s in ("queued", "streaming", "complete", "stopped", "interrupted", "failed")],
    )
    finish_reason = models.CharField(max_length=16, blank=True)  # also "invalid": whole, but not as its schema says
    cid = models.CharField(max_length=64, null=True, help_text="The browser's id: resending is safe.")
    created_at = models.DateTimeField(default=timezone.now)
    error = models.TextField(blank=True)

    # An answer by a schema: `text` is the JSON, `guarantee` how it was made valid (inference/structured.py)
    schema_version = models.ForeignKey("schemas_app.SchemaVersion", null=True, on_delete=models.SET_NULL)
    guarantee = models.JSONField(default=dict)
    reasoning = models.TextField(blank=True, help_text="What a thinking model wrote before its answer.")
    reasoning_ms = models.PositiveIntegerField(null=True)

    # Its place in the context: pinned and expanded stay in full, an expanded one until the next compression
    placement = models.CharField(
        max_length=9, default="automatic", choices=[(p, p) for p in ("automatic", "pinned", "expanded", "excluded")]
    )
    num_tokens = models.PositiveIntegerField(null=True, help_text="Of its content, as `tokens_key` was counted.")
    tokens_key = models.CharField(max_length=32, blank=True)

    # The account under an answer
    model_name = models.CharField(max_length=100, blank=True)
    prompt_tokens = models.PositiveIntegerField(null=True)
    completion_tokens = models.PositiveIntegerField(null=True)
    ttft_ms = models.PositiveIntegerField(null=True)
    duration_ms = models.PositiveIntegerField(null=True)
    window = models.PositiveIntegerField(null=True)

    versions: Versions  # set by Conversation.branch()

    class Meta:
        ordering = ("created_at",)
        constraints = (models.UniqueConstraint(fields=["conversation", "cid"], name="one_message_per_cid"),)
        indexes = (models.Index(fields=["status"]),)

    def __str__(self) -> str:
        return f"{self.role}: {self.text[:60]}"

    @property
    def is_live(self) -> bool:
        return self.status in self.LIVE

    @property
    def content(self) -> str:
        """What the model reads of it, attached files included."""
        return compose(self.text, self.attachments.all()) if self.role == "user" else self.text

    def counted_by(self, model: LanguageModel) -> str:
        """What `tokens_key` is when `num_tokens` holds for its content and this model."""
        return hashlib.blake2b(f"{model.sha256} {self.content}".encode(), digest_size=16).hexdigest()

    @property
    def can_continue(self) -> bool:
        if self.role != "assistant" or self.finish_reason == "invalid":
            return False
        return self.status in ("stopped", "interrupted", "failed") or self.finish_reason == "length"

    @property
    def is_structured(self) -> bool:
        """An answer by a schema, even where the schema is gone meanwhile."""
        return self.schema_version_id is not None or bool(self.guarantee)

    @property
    def tokens_per_second(self) -> float | None:
        if not self.completion_tokens or self.completion_tokens < 2 or self.duration_ms is None:
            return None
        decode_ms = self.duration_ms - (self.ttft_ms or 0)
        return (self.completion_tokens - 1) / decode_ms * 1000 if decode_ms > 0 else None

    @property
    def context_used(self) -> int | None:
        """Tokens of the window that prompt and answer fill."""
        return None if self.prompt_tokens is None else self.prompt_tokens + (self.completion_tokens or 0)

    def append(self, text: str, *, reasoning: str = "", anew: bool = False) -> bool:
        """Add to a reply under way, or write its text `anew`; False if it has ended meanwhile."""
        fields: dict[str, Any] = {"text": models.Value(text) if anew else Concat("text", models.Value(text))}
        if reasoning:
            fields["reasoning"] = Concat("reasoning", models.Value(reasoning))
        return bool(Message.objects.filter(pk=self.pk, status__in=self.LIVE).update(**fields, status="streaming"))

    def end(
        self,
        status: str,
        *,
        html: str,
        text: str | None = None,
        guarantee: dict[str, Any] | None = None,
        reasoning_ms: int | None = None,
        model_name: str = "",
        finish_reason: str = "",
        error: str = "",
        usage: Usage | None = None,
    ) -> bool:
        """Write the final state, once: False if another writer was first. `text` takes the draft's place."""
        fields: dict[str, Any] = {
            "status": status,
            "html": html,
            "guarantee": guarantee or {},
            "model_name": model_name,
            "finish_reason": finish_reason,
            "error": error,
        }
        if text is not None:
            fields["text"] = text
        if reasoning_ms is not None:
            fields["reasoning_ms"] = reasoning_ms
        if usage is not None:
            fields |= {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "ttft_ms": round(usage.ttft_s * 1000),
                "duration_ms": round(usage.duration_s * 1000),
                "window": usage.window,
            }
        return bool(Message.objects.filter(pk=self.pk, status__in=self.LIVE).update(**fields))


class Summary(models.Model):
    """Key facts that stand for the messages up to `up_to`, which stay as they are. None is ever deleted or replaced.

    A later one builds on `previous` and the turns since; one that was written again has the same `up_to`.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="summaries")
    up_to = models.ForeignKey(Message, on_delete=models.CASCADE, related_name="+")
    previous = models.ForeignKey("self", null=True, on_delete=models.SET_NULL, related_name="+")
    data = models.JSONField(help_text="Facts by list; the pinned ones are carried on word for word.")
    text = models.TextField(help_text="As the model reads it.")
    num_messages = models.PositiveIntegerField(help_text="That it stands for, those of `previous` not counted.")
    tokens_before = models.PositiveIntegerField()
    tokens_after = models.PositiveIntegerField()
    model_name = models.CharField(max_length=100)
    template_version = models.ForeignKey("gateway.PromptTemplateVersion", null=True, on_delete=models.SET_NULL)
    created_at = models.DateTimeField(default=timezone.now)
    edited_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    edited_at = models.DateTimeField(null=True)
    is_undone = models.BooleanField(default=False)

    class Meta:
        ordering = ("-created_at",)
        verbose_name_plural = "summaries"

    def __str__(self) -> str:
        return f"{self.tokens_before} → {self.tokens_after} tokens"

    @property
    def facts(self) -> KeyFacts:
        return msgspec.convert(self.data, KeyFacts)

    @property
    def lists(self) -> list[tuple[str, tuple[Fact, ...]]]:
        """What it says, list by list, with the title of each; without the empty ones."""
        facts = self.facts
        return [(title, found) for name, title in TITLES.items() if (found := getattr(facts, name))]

    @property
    def saving(self) -> float:
        """The share of tokens that it saves, 0 to 1."""
        return 1 - self.tokens_after / self.tokens_before if self.tokens_before else 0.0

    def say(self, facts: KeyFacts, num_tokens: int) -> None:
        """Take these facts, not stored yet."""
        self.data, self.text, self.tokens_after = msgspec.to_builtins(facts), facts.text, num_tokens

    def edit(self, facts: KeyFacts, num_tokens: int, editor: User) -> None:
        if not facts.all():
            raise ConversationError("The summary is empty. Write something, or undo it.")
        self.say(facts, num_tokens)
        self.edited_by, self.edited_at = editor, timezone.now()
        self.save(update_fields=["data", "text", "tokens_after", "edited_by", "edited_at"])

    def undo(self) -> None:
        """The one before it holds again, or the messages themselves."""
        self.is_undone = True
        self.save(update_fields=["is_undone"])


def _versions(id: uuid.UUID, siblings: list[uuid.UUID]) -> Versions:
    at = siblings.index(id)
    return Versions(
        number=at + 1,
        count=len(siblings),
        previous_id=siblings[at - 1] if at else None,
        next_id=siblings[at + 1] if at + 1 < len(siblings) else None,
    )


def _title_from(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TITLE_CHARS else line[: TITLE_CHARS - 1].rsplit(" ", 1)[0] + "…"
