"""What other programs export, as records of our own format: ChatGPT, Open WebUI, and this program. No rows.

What cannot be taken over is counted in `Notes`, never dropped without a word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from chat.archive.format import ConversationRecord, MessageRecord

Notes = Counter[str]
MILLISECONDS, NANOSECONDS = 1e11, 1e17  # times that are larger are not in seconds
REASONING = re.compile(r'<details type="reasoning".*?>\s*(?:<summary>.*?</summary>)?(.*?)</details>\s*', re.DOTALL)


class SourceError(Exception):
    """This object is no conversation of a known kind; `str(exc)` says why."""


class Found(NamedTuple):
    """`source` and the record's ids together are the same at each import."""

    source: str
    record: ConversationRecord
    notes: Notes


def read(data: bytes) -> Found:
    """One object of an export file. Raises SourceError."""
    try:
        names = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        source = next((each for each in SOURCES if each.mark in names), None)
        if source is None:
            raise SourceError("It is no conversation of ChatGPT, Open WebUI or LocalLLM.")
        notes: Notes = Counter()
        return Found(source.name, source.convert(data, notes), notes)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise SourceError(f"It cannot be read: {exc}.") from exc


# ChatGPT


class _Author(msgspec.Struct):
    role: str


class _Content(msgspec.Struct):
    content_type: str = "text"
    parts: list[Any] | None = None


class _GptMessage(msgspec.Struct):
    author: _Author
    content: _Content
    create_time: float | None = None
    recipient: str | None = "all"
    metadata: dict[str, Any] | None = None


class _Node(msgspec.Struct):
    message: _GptMessage | None = None
    parent: str | None = None


class _GptConversation(msgspec.Struct):
    mapping: dict[str, _Node]
    title: str | None = None
    conversation_id: str | None = None
    id: str | None = None
    create_time: float | None = None
    update_time: float | None = None
    current_node: str | None = None
    is_archived: bool | None = False
    is_starred: bool | None = False


def _from_chatgpt(data: bytes, notes: Notes) -> ConversationRecord:
    chat = msgspec.json.decode(data, type=_GptConversation)
    id = chat.conversation_id or chat.id
    if not id:
        raise SourceError("The conversation has no id.")
    tree = _Tree((key, node.parent, _gpt_message(key, node.message, notes)) for key, node in chat.mapping.items())
    return ConversationRecord(
        id=id,
        title=(chat.title or "")[:200],
        created_at=_time(chat.create_time),
        updated_at=_time(chat.update_time),
        is_archived=bool(chat.is_archived),
        is_pinned=bool(chat.is_starred),
        messages=tree.messages,
        leaf_id=tree.kept(chat.current_node),
    )


def _gpt_message(key: str, message: _GptMessage | None, notes: Notes) -> MessageRecord | None:
    """None for what is not said by either side, or holds no text."""
    if message is None or (message.metadata or {}).get("is_visually_hidden_from_conversation"):
        return None
    role, content = message.author.role, message.content
    if role not in ("user", "assistant") or message.recipient not in ("all", None):
        notes["messages of tools or the system"] += role != "system"
        return None
    parts = content.parts or []
    text = "\n\n".join(part for part in parts if isinstance(part, str) and part.strip())
    notes["images, files or sounds"] += sum(not isinstance(part, str) for part in parts)
    if content.content_type not in ("text", "multimodal_text"):
        notes[f"parts of the kind {content.content_type[:40]}"] += 1
        return None
    if not text:
        return None
    model = str((message.metadata or {}).get("model_slug") or "")[:100] if role == "assistant" else ""
    return MessageRecord(
        id=key,
        role="user" if role == "user" else "assistant",
        text=text,
        created_at=_time(message.create_time),
        model=model,
    )


# Open WebUI


class _WebMessage(msgspec.Struct):
    role: str
    content: Any = ""
    id: str | None = None
    parentId: str | None = None
    timestamp: float | None = None
    model: str | None = None
    files: list[Any] | None = None


class _History(msgspec.Struct):
    messages: dict[str, _WebMessage] = {}
    currentId: str | None = None


class _WebChat(msgspec.Struct):
    title: str | None = None
    history: _History | None = None
    messages: list[_WebMessage] = []
    system: str | None = None


class _WebConversation(msgspec.Struct):
    id: str
    chat: _WebChat
    title: str | None = None
    created_at: float | None = None
    updated_at: float | None = None
    archived: bool | None = False
    pinned: bool | None = False


def _from_open_webui(data: bytes, notes: Notes) -> ConversationRecord:
    found = msgspec.json.decode(data, type=_WebConversation)
    history = found.chat.history or _History()
    messages = history.messages or _listed(found.chat.messages)
    tree = _Tree((key, each.parentId, _web_message(key, each, notes)) for key, each in messages.items())
    return ConversationRecord(
        id=found.id,
        title=(found.title or found.chat.title or "")[:200],
        created_at=_time(found.created_at),
        updated_at=_time(found.updated_at),
        is_archived=bool(found.archived),
        is_pinned=bool(found.pinned),
        system_prompt=found.chat.system or "",
        messages=tree.messages,
        leaf_id=tree.kept(history.currentId),
    )


def _listed(messages: list[_WebMessage]) -> dict[str, _WebMessage]:
    """Old files have no tree: each message follows the one before it."""
    by_id: dict[str, _WebMessage] = {}
    before = None
    for number, message in enumerate(messages):
        message.parentId, before = before, message.id or str(number)
        by_id[before] = message
    return by_id


def _web_message(key: str, message: _WebMessage, notes: Notes) -> MessageRecord | None:
    if message.role not in ("user", "assistant"):
        notes["messages of tools or the system"] += message.role != "system"
        return None
    notes["images, files or sounds"] += len(message.files or [])
    text = message.content
    if isinstance(text, list):
        texts = [part.get("text") for part in text if isinstance(part, dict) and part.get("type") == "text"]
        notes["images, files or sounds"] += len(text) - len(texts)
        text = "\n\n".join(part for part in texts if isinstance(part, str))
    if not isinstance(text, str) or not text.strip():
        return None
    reasoning = "\n\n".join(found.strip() for found in REASONING.findall(text)) if message.role == "assistant" else ""
    return MessageRecord(
        id=key,
        role="user" if message.role == "user" else "assistant",
        text=REASONING.sub("", text) if reasoning else text,
        reasoning=re.sub(r"^> ?", "", reasoning, flags=re.MULTILINE),
        created_at=_time(message.timestamp),
        model=(message.model or "")[:100] if message.role == "assistant" else "",
    )


# Our own


def _from_localllm(data: bytes, notes: Notes) -> ConversationRecord:
    return msgspec.json.decode(data, type=ConversationRecord)


class _Source(NamedTuple):
    name: str
    mark: str  # a name that only its objects have
    convert: Callable[[bytes, Notes], ConversationRecord]


SOURCES = (
    _Source("chatgpt", "mapping", _from_chatgpt),
    _Source("open-webui", "chat", _from_open_webui),
    _Source("localllm", "messages", _from_localllm),
)


class _Tree:
    """Nodes of which some are left out: their children hang on the nearest one that is kept.

    An answer in several pieces, one after the other, is one message.
    """

    def __init__(self, nodes: Iterable[tuple[str, str | None, MessageRecord | None]]) -> None:
        self._nodes = {key: (parent, message) for key, parent, message in nodes}
        self._kept: dict[str, str | None] = {}
        self._num_children: Counter[str | None] = Counter()
        for key in self._nodes:
            self._num_children[self._first_kept(self._nodes[key][0])] += self._nodes[key][1] is not None
        self.messages = list(self._joined())

    def kept(self, key: str | None) -> str | None:
        """The message that stands for a node now."""
        key = self._first_kept(key)
        return self._kept.get(key, key) if key else None

    def _first_kept(self, key: str | None) -> str | None:
        for _ in self._nodes:  # a circle is no way up
            if key is None or key not in self._nodes:
                return None
            parent, message = self._nodes[key]
            if message is not None:
                return key
            key = parent
        return None

    def _joined(self) -> Iterator[MessageRecord]:
        by_id: dict[str, MessageRecord] = {}
        for key in self._from_the_top():
            message = self._nodes[key][1]
            assert message is not None
            parent_id = self._first_kept(self._nodes[key][0])
            parent = by_id.get(self._kept.get(parent_id, parent_id) or "") if parent_id else None
            if parent and parent.role == message.role == "assistant" and self._num_children[parent_id] == 1:
                parent.text += f"\n\n{message.text}"
                self._kept[key] = parent.id
                continue
            message.parent_id = parent.id if parent else None
            by_id[key] = message
        yield from by_id.values()

    def _from_the_top(self) -> Iterator[str]:
        """Kept nodes, each after its parent; circles are left out."""
        children: dict[str | None, list[str]] = {}
        for key, (parent, message) in self._nodes.items():
            if message is not None:
                children.setdefault(self._first_kept(parent), []).append(key)
        waiting = children.get(None, [])[::-1]
        while waiting:
            key = waiting.pop()
            yield key
            waiting += children.get(key, [])[::-1]


def _time(value: float | None) -> datetime | None:
    if value is None:
        return None
    if value > MILLISECONDS:
        value /= 1e9 if value > NANOSECONDS else 1e3
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        return None
