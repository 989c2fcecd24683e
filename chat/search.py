"""Full-text search in the titles and messages of one owner.

On SQLite an FTS5 index that triggers keep up to date; a message enters it when it is final, so the appends
of a streaming reply stay cheap. Elsewhere plain containment. SQLite drops triggers when a later migration
rebuilds a table: such a migration calls `install` again (tests/chat/test_search.py would notice).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from uuid import UUID

from django.contrib.auth.models import User
from django.db import connection
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.models import Q
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe

from chat.models import Conversation, Message

MAX_HITS = 40
MAX_TERMS = 12
SNIPPET_WORDS = 14
SNIPPET_CHARS = 120
# Private-use characters: they stand around a match until everything else is escaped.
OPEN, CLOSE = "\ue000", "\ue001"

_ADD_MESSAGE = """
    INSERT INTO chat_document (conversation_id, message_id, text)
    SELECT NEW.conversation_id, NEW.id, NEW.text WHERE NEW.status NOT IN ('queued', 'streaming');
"""
STATEMENTS = [
    """CREATE TABLE chat_document (
        id INTEGER PRIMARY KEY, conversation_id CHAR(32) NOT NULL, message_id CHAR(32) UNIQUE, text TEXT NOT NULL
    )""",
    "CREATE UNIQUE INDEX chat_document_title ON chat_document (conversation_id) WHERE message_id IS NULL",
    """CREATE VIRTUAL TABLE chat_fts USING fts5 (
        text, content='chat_document', content_rowid='id', tokenize='unicode61 remove_diacritics 2'
    )""",
    """CREATE TRIGGER chat_document_added AFTER INSERT ON chat_document BEGIN
        INSERT INTO chat_fts (rowid, text) VALUES (NEW.id, NEW.text);
    END""",
    """CREATE TRIGGER chat_document_removed AFTER DELETE ON chat_document BEGIN
        INSERT INTO chat_fts (chat_fts, rowid, text) VALUES ('delete', OLD.id, OLD.text);
    END""",
]
TRIGGERS = {
    "chat_message_search_insert": f"AFTER INSERT ON chat_message BEGIN {_ADD_MESSAGE} END",
    "chat_message_search_update": f"""AFTER UPDATE OF text, status ON chat_message
        WHEN NOT (OLD.status IN ('queued', 'streaming') AND NEW.status IN ('queued', 'streaming')) BEGIN
        DELETE FROM chat_document WHERE message_id = OLD.id;
        {_ADD_MESSAGE}
    END""",
    "chat_message_search_delete": """AFTER DELETE ON chat_message BEGIN
        DELETE FROM chat_document WHERE message_id = OLD.id;
    END""",
    "chat_conversation_search_insert": """AFTER INSERT ON chat_conversation BEGIN
        INSERT INTO chat_document (conversation_id, text) VALUES (NEW.id, NEW.title);
    END""",
    "chat_conversation_search_update": """AFTER UPDATE OF title ON chat_conversation
        WHEN OLD.title <> NEW.title BEGIN
        DELETE FROM chat_document WHERE conversation_id = OLD.id AND message_id IS NULL;
        INSERT INTO chat_document (conversation_id, text) VALUES (NEW.id, NEW.title);
    END""",
    "chat_conversation_search_delete": """AFTER DELETE ON chat_conversation BEGIN
        DELETE FROM chat_document WHERE conversation_id = OLD.id AND message_id IS NULL;
    END""",
}
QUERY = """
    SELECT document.conversation_id, conversation.title, conversation.folder, document.message_id,
           snippet(chat_fts, 0, %s, %s, '…', %s)
    FROM chat_fts
    JOIN chat_document AS document ON document.id = chat_fts.rowid
    JOIN chat_conversation AS conversation ON conversation.id = document.conversation_id
    WHERE chat_fts MATCH %s AND conversation.owner_id = %s
    ORDER BY document.message_id IS NOT NULL, rank
    LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class Hit:
    """A title, or a message when `message_id` is set; `snippet` is safe HTML with the matches marked."""

    conversation_id: UUID
    title: str
    folder: str
    message_id: UUID | None
    snippet: SafeString


def search(user: User, query: str) -> list[Hit]:
    """The best hits, titles first. Every word must occur; the last one may be unfinished."""
    terms = re.findall(r"\w+", query)[:MAX_TERMS]
    if not terms:
        return []
    return _full_text(user, terms) if connection.vendor == "sqlite" else _containing(user, terms)


def _full_text(user: User, terms: list[str]) -> list[Hit]:
    match = " ".join(f'"{term}"' for term in terms) + "*"
    with connection.cursor() as cursor:
        cursor.execute(QUERY, [OPEN, CLOSE, SNIPPET_WORDS, match, user.pk, MAX_HITS])
        rows = cursor.fetchall()
    return [
        Hit(UUID(conversation), title, folder, UUID(message) if message else None, _marked(snippet))
        for conversation, title, folder, message, snippet in rows
    ]


def _containing(user: User, terms: list[str]) -> list[Hit]:
    conversations = Conversation.objects.owned_by(user)
    titles = conversations.filter(*(Q(title__icontains=term) for term in terms))[:MAX_HITS]
    hits = [Hit(each.pk, each.title, each.folder, None, _excerpt(each.title, terms)) for each in titles]
    messages = Message.objects.filter(
        *(Q(text__icontains=term) for term in terms), conversation__in=conversations
    ).exclude(status__in=Message.LIVE)
    for each in messages.select_related("conversation").order_by("-created_at")[: MAX_HITS - len(hits)]:
        of = each.conversation
        hits.append(Hit(of.pk, of.title, of.folder, each.pk, _excerpt(each.text, terms)))
    return hits


def _excerpt(text: str, terms: list[str]) -> SafeString:
    pattern = re.compile("|".join(map(re.escape, terms)), re.IGNORECASE)
    first = pattern.search(text)
    start = max(0, first.start() - SNIPPET_CHARS // 3) if first else 0
    cut = text[start : start + SNIPPET_CHARS]
    return _marked(("…" if start else "") + pattern.sub(lambda match: f"{OPEN}{match[0]}{CLOSE}", cut))


def _marked(snippet: str) -> SafeString:
    html = re.sub(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}", r"<mark>\1</mark>", escape(" ".join(snippet.split())))
    return mark_safe(html.replace(OPEN, "").replace(CLOSE, ""))


def install(schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Make the index and fill it; again after a migration that rebuilt a table."""
    if schema_editor.connection.vendor != "sqlite":
        return
    remove(schema_editor)
    for statement in STATEMENTS:
        schema_editor.execute(statement)
    for name, body in TRIGGERS.items():
        schema_editor.execute(f"CREATE TRIGGER {name} {body}")
    schema_editor.execute("INSERT INTO chat_document (conversation_id, text) SELECT id, title FROM chat_conversation")
    schema_editor.execute(
        "INSERT INTO chat_document (conversation_id, message_id, text) SELECT conversation_id, id, text "
        "FROM chat_message WHERE status NOT IN ('queued', 'streaming')"
    )


def remove(schema_editor: BaseDatabaseSchemaEditor) -> None:
    if schema_editor.connection.vendor != "sqlite":
        return
    for name in TRIGGERS:
        schema_editor.execute(f"DROP TRIGGER IF EXISTS {name}")
    schema_editor.execute("DROP TABLE IF EXISTS chat_fts")
    schema_editor.execute("DROP TABLE IF EXISTS chat_document")
