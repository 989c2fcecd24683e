"""kill -9 of the web process in the middle of an answer by a schema: the next one goes on from its JSON."""

import json
import time
import uuid

from tests.browser_client import Browser
from tests.server import ADMIN, PASSWORD, Server
from tests.test_durability import query, reply_to, stored, wait_until_live

MAKE = """
from schemas_app.models import Schema
schema = Schema.objects.create(slug="forty", name="Forty numbers", is_shared=True)
items = '{"type": "integer", "minimum": 10, "maximum": 99}'
schema.add_version(text='{"type": "array", "minItems": 40, "maxItems": 40, "items": %s}' % items, max_tokens=300)
print(schema.pk)
"""


def test_an_answer_by_a_schema_goes_on_when_the_server_was_killed(tmp_path):
    with Server(tmp_path / "home") as server:
        schema = server.manage("shell", "-v0", "-c", MAKE).stdout.strip()
        reply, part = ask_and_kill(server, schema)
        server.start()
        wait_until_live(server)
        status, text = stored(server.home, reply)
        ((guarantee,),) = query(server.home, "SELECT guarantee FROM chat_message WHERE id=?", uuid.UUID(reply).hex)
    numbers = [int(each) for each in part.strip("[] ").split(",")[:-1]]
    assert status == "complete" and len(json.loads(text)) == 40 and json.loads(text)[: len(numbers)] == numbers
    assert json.loads(guarantee)["guarantee"] == "constrained"


def ask_and_kill(server: Server, schema: str) -> tuple[str, str]:
    """The id of a reply that was killed in the middle, and its text so far."""
    browser, cid = Browser(server.url, ADMIN, PASSWORD), uuid.uuid4().hex
    server.pause()
    browser.post("/chat/", text="Count.", cid=cid, schema=schema)
    reply = reply_to(server.home, cid)
    while not stored(server.home, reply)[1]:
        server.run_for_a_moment()
        time.sleep(0.05)  # a moment for the commit
    server.kill()
    status, part = stored(server.home, reply)
    assert status == "streaming" and "]" not in part
    return reply, part
