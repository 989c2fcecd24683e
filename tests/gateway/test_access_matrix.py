"""Who gets what answer at every address and for every operation of the socket, on a real server.

Generated from the URLconf and the operation table: a new one without an entry here fails.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import pytest
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from chat.consumers import CLOSE_NOT_FOUND, CLOSE_SIGNED_OUT, OPERATIONS
from tests.server import ADMIN, Server

NOBODY, OWNER, OTHER, BOSS = "nobody", "owner", "other", ADMIN
PEOPLE = (NOBODY, OTHER, BOSS, OWNER)  # the owner last: only then may anything change
CSRF = "a" * 32

LOGIN, GONE = 302, 404


class Row(NamedTuple):
    """Statuses for anonymous, another user, an admin, and the owner of the conversation in the address."""

    method: str
    nobody: int
    other: int
    boss: int
    owner: int
    form: dict[str, str] = {}  # noqa: RUF012


def own(method: str, status: int, **form: str) -> Row:
    """Only the owner; to everybody else who is signed in it does not exist."""
    return Row(method, LOGIN, GONE, GONE, status, form)


def any_user(method: str, status: int, **form: str) -> Row:
    return Row(method, LOGIN, status, status, status, form)


def logged(method: str, status: int) -> Row:
    """A logged generation is its asker's, and that of who may view the log."""
    return Row(method, LOGIN, GONE, status, status)


def only_boss(method: str, status: int, **form: str) -> Row:
    """Those with the permission; of these people only the admin."""
    return Row(method, LOGIN, 403, status, 403, form)


def public(method: str, status: int) -> Row:
    return Row(method, status, status, status, status)


TABLE: dict[str, list[Row]] = {
    "chat:new": [any_user("GET", 200)],
    "chat:sidebar": [any_user("GET", 200)],
    "chat:create": [any_user("POST", 303, text="Hello", cid="c"), any_user("GET", 405)],
    "chat:show": [own("GET", 200)],
    "chat:messages": [own("GET", 200)],
    "chat:message": [own("GET", 200)],
    "chat:data": [own("GET", 200)],
    "chat:feedback": [own("POST", 302, value="1")],
    "chat:passage": [own("GET", 200)],
    "chat:attachment": [own("GET", 200)],
    "chat:upload": [any_user("POST", 422)],
    "chat:file-chip": [own("GET", 200)],
    "chat:file-remove": [own("POST", 204)],
    "chat:export-markdown": [own("GET", 200)],
    "chat:export-json": [own("GET", 200)],
    "chat:archive-index": [any_user("GET", 200)],
    "chat:export-account-json": [any_user("GET", 200)],
    "chat:export-account-zip": [any_user("GET", 200)],
    "chat:import": [any_user("POST", 400)],
    "chat:import-part": [any_user("POST", 400)],
    "chat:imports": [any_user("GET", 200)],
    "chat:import-cancel": [own("POST", 302)],
    "chat:menu": [own("GET", 200)],
    "chat:rename": [own("GET", 200), own("POST", 302, title="New")],
    "chat:delete": [own("GET", 200), own("POST", 302)],
    "chat:pin": [own("POST", 302)],
    "chat:archive": [own("POST", 302)],
    "chat:move-to-folder": [own("GET", 200), own("POST", 302, folder="New")],
    "chat:rename-folder": [any_user("GET", 404), own("POST", 302, name="{folder}", folder="New")],
    "chat:select": [own("POST", 302, message="{message}")],
    "chat:model": [own("POST", 302, model="starter")],
    "chat:context": [own("GET", 200), own("POST", 200, text="Hello")],
    "chat:context-bar": [own("POST", 200, text="Hello")],
    "chat:context-sent": [own("POST", 200, text="Hello")],
    "chat:context-place": [own("POST", 200, message="{message}", placement="pinned"), own("POST", 400)],
    "chat:summary-edit": [own("GET", 200), own("POST", 204, narrative="Hello.")],
    "chat:summary-pin": [own("POST", 204, fact="A fact.", pinned="1")],
    "chat:summary-undo": [own("POST", 204)],
    "chat:settings": [own("GET", 200), own("POST", 302, temperature="0.5")],
    "models:index": [any_user("GET", 200)],
    "prompts:index": [any_user("GET", 200)],
    "prompts:new": [only_boss("GET", 200), only_boss("POST", 400)],
    "prompts:preview": [any_user("POST", 200, text="Hello")],
    "prompts:picker": [any_user("GET", 200)],
    "prompts:show": [any_user("GET", 200)],
    "prompts:edit": [only_boss("GET", 200), only_boss("POST", 400)],
    "prompts:compare": [any_user("GET", 200)],
    "prompts:make-current": [only_boss("POST", 302, version="1")],
    "prompts:delete": [only_boss("GET", 200), only_boss("POST", 302)],
    "prompts:restore": [only_boss("POST", 302)],
    "prompts:insert": [any_user("GET", 200), any_user("POST", 200)],
    "prompts:experiment-new": [only_boss("GET", 200), only_boss("POST", 400)],
    "prompts:experiment": [any_user("GET", 200)],
    "prompts:trial-new": [only_boss("GET", 200), only_boss("POST", 400)],
    "prompts:trial": [own("GET", 200)],
    "prompts:trial-cancel": [own("POST", 302)],
    "prompts:trial-resume": [own("POST", 302)],
    "prompts:experiment-end": [only_boss("POST", 302, kept="1")],
    "models:show": [any_user("GET", 200)],
    "models:load": [only_boss("POST", 302)],
    "models:unload": [only_boss("POST", 302)],
    "models:cancel-load": [only_boss("POST", 302)],
    "models:make-default": [only_boss("POST", 302)],
    "models:measure": [only_boss("POST", 302)],
    "models:check": [only_boss("POST", 302)],
    "models:settings": [only_boss("GET", 200), only_boss("POST", 400, n_ctx="0")],
    "models:settings-fit": [only_boss("POST", 200)],
    "models:replace": [only_boss("POST", 404)],
    "models:roll-back": [only_boss("POST", 404)],
    "models:remove-version": [only_boss("POST", 404)],
    "models:delete": [only_boss("GET", 200), only_boss("POST", 302)],
    "models:catalogue": [any_user("GET", 200)],
    "models:catalogue-first": [any_user("GET", 200)],
    "models:catalogue-entry": [any_user("GET", 200)],
    "models:catalogue-get": [only_boss("POST", 302), any_user("GET", 405)],
    "models:hub": [only_boss("GET", 200)],
    "models:hub-account": [only_boss("GET", 200)],
    "models:downloads": [only_boss("GET", 200)],
    "models:download-start": [only_boss("POST", 302)],
    "models:download-pause": [only_boss("POST", 302)],
    "models:download-resume": [only_boss("POST", 302)],
    "models:download-cancel": [only_boss("POST", 302)],
    "models:quantise": [only_boss("GET", 200)],
    "models:quantise-start": [only_boss("POST", 400, recipe="Q9")],
    "models:quantise-cancel": [only_boss("POST", 404)],
    "models:uploads": [only_boss("GET", 200)],
    "models:register": [only_boss("POST", 302, path="/etc/passwd")],
    "models:upload-begin": [only_boss("POST", 400)],
    "models:upload-status": [only_boss("GET", 200)],
    "models:upload-chunk": [only_boss("POST", 409)],
    "models:upload-cancel": [only_boss("POST", 302)],
    "schemas:index": [any_user("GET", 200)],
    "schemas:new": [any_user("GET", 200), any_user("POST", 400)],
    "schemas:check": [any_user("POST", 200, text="{{}}")],
    "schemas:draft": [any_user("POST", 200)],
    "schemas:show": [own("GET", 200)],
    "schemas:edit": [own("GET", 200), own("POST", 400)],
    "schemas:duplicate": [own("POST", 302)],
    "schemas:share": [Row("POST", LOGIN, 403, GONE, 403)],
    "schemas:delete": [own("GET", 200), own("POST", 302)],
    "schemas:compare": [own("GET", 200)],
    "schemas:roll-back": [own("POST", 302, version="1")],
    "schemas:try-it": [own("GET", 200)],
    "schemas:run": [own("POST", 400), own("POST", 200, input="Hello", version="1", model="starter")],
    "schemas:try-out": [own("GET", 200)],
    "schemas:try-out-delete": [own("POST", 204)],
    "schemas:picker": [any_user("GET", 200)],
    "schemas:batches": [any_user("GET", 200)],
    "schemas:batch-new": [any_user("GET", 200)],
    "schemas:batch-preview": [any_user("POST", 200)],
    "schemas:batch-create": [any_user("POST", 400)],
    "schemas:batch": [own("GET", 200)],
    "schemas:batch-progress": [own("GET", 200)],
    "schemas:batch-rows": [own("GET", 200)],
    "schemas:batch-pause": [own("POST", 302)],
    "schemas:batch-resume": [own("POST", 302)],
    "schemas:batch-cancel": [own("POST", 302)],
    "schemas:batch-retry": [own("POST", 302)],
    "schemas:batch-delete": [own("POST", 302)],
    "schemas:batch-csv": [own("GET", 200)],
    "schemas:batch-jsonl": [own("GET", 200)],
    "usage:show": [logged("GET", 200)],
    "usage:of-message": [logged("GET", 302)],
    "usage:text": [logged("GET", 200)],
    "usage:replays": [logged("GET", 200)],
    "usage:replay": [logged("POST", 302)],
    "usage:cancel": [logged("POST", 302)],
    "setup": [public("GET", 302), public("POST", 302)],
    "login": [Row("GET", 200, 302, 302, 302)],
    "logout": [Row("GET", LOGIN, 405, 405, 405)],
    "password_change": [any_user("GET", 200)],
    "health": [public("GET", 200), public("POST", 405)],
    "admin_login": [Row("GET", LOGIN, 403, 302, 403)],
    "admin_password": [any_user("GET", 302)],
    "v1:models": [public("GET", 401)],
    "v1:model": [public("GET", 401)],
    "v1:chat-completions": [public("POST", 401)],
    "v1:unknown": [public("GET", 404), public("POST", 404)],
    "native:structured": [public("POST", 401)],
    "native:extract-parameters": [public("POST", 401)],
    "native:unknown": [public("GET", 404), public("POST", 404)],
}

ROWS = [(name, row) for name, rows in TABLE.items() for row in rows]

# What the operation carries besides its type, and what the owner gets for it.
FRAMES: dict[str, tuple[dict[str, str], str]] = {
    "send": ({"cid": "new", "text": "Hello"}, "ack"),
    "edit": ({"cid": "new", "text": "Hello", "message": "{question}"}, "ack"),
    "regenerate": ({"message": "{message}"}, "changed"),
    "continue": ({"message": "{cut}"}, "changed"),
    "stop": ({"message": "{message}"}, ""),
    "resume": ({"message": "{message}"}, "done"),
    "compress": ({}, "compressing"),
    "cancel-compression": ({}, ""),
}

MAKE = """
import json
from django.contrib.auth import SESSION_KEY, BACKEND_SESSION_KEY, HASH_SESSION_KEY
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from chat.attachments import Attachment, File
from chat.models import Conversation, Summary
from localllm.gateway.models import Download, Experiment, Job, PromptTemplate, Trial, Upload, UsageLog
from localllm.inference.compression import Fact, KeyFacts
from schemas_app.models import Batch, Schema, TryOut
made = {"cookies": {}, "conversations": []}
for name in ("owner", "other", "%(admin)s"):
    user = User.objects.get_or_create(username=name)[0]
    session = SessionStore()
    session[SESSION_KEY], session[HASH_SESSION_KEY] = str(user.pk), user.get_session_auth_hash()
    session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    session.create()
    made["cookies"][name] = session.session_key
def fill(conversation, cid, **end):
    question, reply = conversation.send(cid, "Hello")
    type(reply).objects.filter(pk=reply.pk).update(text="Hi.", html="<p>Hi.</p>", **end)
    return {"question": str(question.pk), "message": str(reply.pk)}
for number in range(%(number)d):
    chat = Conversation.objects.create(owner=User.objects.get(username="owner"), folder=f"Folder {number}")
    cut = fill(chat, "a", status="stopped")["message"]
    ids = fill(chat, "b", status="complete", finish_reason="stop", guarantee={"guarantee": "constrained"})
    job = Job.objects.create(kind="batch", title="A batch", owner=chat.owner, state="paused")
    batch = Batch.objects.create(job=job)
    summary = Summary(conversation=chat, up_to_id=ids["message"], num_messages=4, tokens_before=90)
    summary.say(KeyFacts(names=(Fact("A fact."),)), 10)
    summary.save()
    ids["summary"] = str(summary.pk)
    paused = Job.objects.create(kind="download", title="A file", state="paused")
    Download.objects.create(job=paused, sha256=f"{number:064}", size_bytes=1, parts=[["a.gguf", 1, f"{number:064}"]])
    upload = Upload.objects.create(user=User.objects.get(username="%(admin)s"), name="a.gguf", size_bytes=9)
    schema = Schema.objects.create(owner=chat.owner, name="A schema", slug=f"a-schema-{number}")
    version = schema.add_version(text='{"type": "string"}', max_tokens=50)
    account = {"guarantee": "constrained", "fields": {}, "finish_reason": "stop", "usage": {}}
    kept = TryOut.objects.keep(chat.owner, version, input="Hello", text='"Hi"', account=account)
    ids["try_out"] = str(kept.pk)
    about = {"media_type": "text/plain", "size_bytes": 2, "text": "Hi", "num_chars": 2}
    file, unsent = (File.objects.create(owner=chat.owner, name=name, **about) for name in ("a.txt", "b.txt"))
    rag = PromptTemplate.objects.get(name="rag_query", family="").current
    sent = Attachment.objects.create(
        message_id=ids["question"], file=file, place=0, mode="passages", passages=[[1, 0, 2]], template_version=rag
    )
    importing = Job.objects.create(kind="import", title="An import", owner=chat.owner, state="paused")
    ids |= {"folder": chat.folder, "attachment": str(sent.pk), "file": str(unsent.pk), "import": str(importing.pk)}
    log = UsageLog.objects.create(user=chat.owner, source="chat", message_id=ids["message"])
    ids["generation"] = str(log.pk)
    template = PromptTemplate.objects.create(name=f"a-prompt-{number}")
    template.make_current(template.add_version("Hello"))
    shares = {template.current: 50, template.add_version("Good day"): 50}
    ids["experiment"] = str(Experiment.objects.start(template, "tokens", shares).pk)
    ids["template"] = str(template.pk)
    tried = Job.objects.create(kind="trial", title="A trial", owner=chat.owner, state="paused")
    ids["trial"] = str(Trial.objects.create(job=tried, version=template.current).pk)
    rows = {"id": str(chat.pk), "cut": cut, "batch": str(batch.pk), "schema": str(schema.pk)}
    rows |= {"download": str(paused.pk), "upload": str(upload.pk)}
    made["conversations"].append({**rows, **ids})
chat = Conversation.objects.create(owner=User.objects.get(username="other"))
made["conversation_of_other"] = str(chat.pk)
print(json.dumps(made))
"""


class World(NamedTuple):
    server: Server
    cookies: dict[str, str]
    conversations: Iterator[dict[str, str]]  # each of the owner's, fresh
    conversation_of_other: str

    def cookie(self, person: str) -> str:
        session = f"; sessionid={self.cookies[person]}" if person != NOBODY else ""
        return f"csrftoken={CSRF}{session}"

    def socket(self, person: str, conversation: str) -> ClientConnection:
        return connect(
            f"ws://127.0.0.1:{self.server.port}/ws/chat/{conversation}/",
            additional_headers={"Cookie": self.cookie(person)},
            origin=self.server.url,  # type: ignore[arg-type]
        )


@pytest.fixture(scope="module")
def world(server: Server) -> World:
    number = len(ROWS) + 2 * len(OPERATIONS)
    done = server.manage("shell", "-v0", "-c", MAKE % {"admin": ADMIN, "number": number})
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    return World(server, made["cookies"], iter(made["conversations"]), made["conversation_of_other"])


def named_patterns(patterns: list[Any], namespace: str = "") -> Iterator[tuple[str, URLPattern]]:
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            yield from named_patterns(pattern.url_patterns, f"{pattern.namespace}:" if pattern.namespace else namespace)
        else:
            yield f"{namespace}{pattern.name}", pattern


PATTERNS = dict(named_patterns(get_resolver().url_patterns))
ADMIN_NAMES = sorted(name for name in PATTERNS if name.startswith("admin:"))


def test_every_address_has_an_entry() -> None:
    assert set(TABLE) == {name for name in PATTERNS if not name.startswith("admin:")}


def test_every_operation_has_an_entry() -> None:
    assert set(FRAMES) == set(OPERATIONS)


UNKNOWN = {"v1:unknown": "/v1/nothing", "native:unknown": "/api/local-llm/nothing"}


def address(name: str, ids: dict[str, str]) -> str:
    known = {"id": ids["id"], "message_id": ids["message"], "name": "starter"}
    known |= {"summary_id": ids["summary"]}
    known |= {"batch_id": ids["batch"], "schema_id": ids["schema"], "try_out_id": ids["try_out"]}
    known |= {"attachment_id": ids["attachment"], "file_id": ids["file"], "number": 1}
    known |= {"import_id": ids["import"], "part_of": ids["import"]}
    known |= {"template_id": ids["template"], "experiment_id": ids["experiment"], "trial_id": ids["trial"]}
    known |= {"slug": "qwen3-8b", "job_id": ids["download"], "upload_id": ids["upload"]}
    known |= {"slug": "qwen3-8b", "job_id": ids["download"]}
    known |= {"upload_id": ids["upload"], "generation_id": ids["generation"]}
    if name in UNKNOWN:
        return UNKNOWN[name]
    return reverse(name, kwargs={key: known[key] for key in PATTERNS[name].pattern.converters})


def status(world: World, person: str, method: str, path: str, form: dict[str, str]) -> int:
    headers = {"Cookie": world.cookie(person), "X-CSRFToken": CSRF}
    headers["Content-Type"] = "application/x-www-form-urlencoded"
    body = "&".join(f"{key}={value}" for key, value in form.items())
    with closing(http.client.HTTPConnection("127.0.0.1", world.server.port, timeout=30)) as browser:
        browser.request(method, path, body or None, headers)
        return browser.getresponse().status


@pytest.mark.parametrize(("name", "row"), ROWS, ids=[f"{row.method} {name}" for name, row in ROWS])
def test_an_address_answers_each_as_it_should(world: World, name: str, row: Row) -> None:
    ids = next(world.conversations)
    form = {key: value.format(**ids) for key, value in row.form.items()}
    got = {person: status(world, person, row.method, address(name, ids), form) for person in PEOPLE}
    assert got == {NOBODY: row.nobody, OTHER: row.other, BOSS: row.boss, OWNER: row.owner}


@pytest.mark.parametrize("name", ADMIN_NAMES)
def test_the_admin_pages_are_for_admins(world: World, name: str) -> None:
    pattern = PATTERNS[name].pattern
    path = "/admin/nothing" if name == "admin:None" else _filled(name, pattern)
    got = {person: status(world, person, "GET", path, {}) for person in PEOPLE}
    boss = got.pop(BOSS)
    assert boss in (200, 301, 302, 400, 403, 404, 405)
    assert set(got.values()) <= {302, 403, 404}, got


def _filled(name: str, pattern: Any) -> str:
    given = {"app_label": "gateway", "object_id": "1", "id": "1", "content_type_id": "1", "url": "nothing"}
    return reverse(name, kwargs={key: given[key] for key in pattern.regex.groupindex})


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_the_owners_alone(world: World, operation: str) -> None:
    ids = next(world.conversations)
    assert answer(world, NOBODY, ids["id"], operation, ids) == CLOSE_SIGNED_OUT
    assert answer(world, OTHER, ids["id"], operation, ids) == CLOSE_NOT_FOUND
    assert answer(world, BOSS, ids["id"], operation, ids) == CLOSE_NOT_FOUND
    if expected := FRAMES[operation][1]:
        assert answer(world, OWNER, ids["id"], operation, ids) == expected


@pytest.mark.parametrize("operation", [name for name, (frame, _) in FRAMES.items() if "message" in frame])
def test_an_operation_cannot_reach_into_a_foreign_conversation(world: World, operation: str) -> None:
    ids = next(world.conversations)
    assert answer(world, OTHER, world.conversation_of_other, operation, ids) == "error"


def answer(world: World, person: str, conversation: str, operation: str, ids: dict[str, str]) -> str | int:
    """The type of the first frame that answers, or the code the socket is closed with."""
    frame = {key: value.format(**ids) for key, value in FRAMES[operation][0].items()}
    with world.socket(person, conversation) as socket:
        try:
            socket.send(json.dumps({"type": operation, **frame}))
            return str(json.loads(socket.recv(timeout=30))["type"])
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 0
