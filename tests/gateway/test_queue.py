"""A real server with one slot and a queue for one: who comes too late is told, over HTTP."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import openai
import pytest

from tests.gateway.test_api import ENDLESS, ask, connect
from tests.server import Server


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("home"))
    server.make_home()
    with closing(sqlite3.connect(server.database)) as database, database:
        database.execute("UPDATE gateway_languagemodel SET num_slots = 1, max_waiting = 1")
    with server:
        yield server


def test_who_finds_the_queue_full_gets_503_and_a_time(narrow: Server) -> None:
    key = narrow.make_key()

    def refusal(api: openai.OpenAI) -> openai.InternalServerError | None:
        try:
            ask(api, max_tokens=1)
        except openai.InternalServerError as exc:
            return exc
        return None

    with closing(connect(narrow, key, {"stream": True} | ENDLESS)) as busy:
        busy.getresponse().readline()
        with (
            openai.OpenAI(base_url=f"{narrow.url}/v1", api_key=key, max_retries=0) as api,
            ThreadPoolExecutor() as pool,
        ):
            refusals = [each for each in pool.map(refusal, [api] * 4) if each]
    assert 0 < len(refusals) < 4  # one could wait
    assert {(each.status_code, each.code, each.type) for each in refusals} == {(503, "queue_full", "server_error")}
    assert "is full, with 1 waiting of at most 1. Try again in" in str(refusals[0])
    assert int(refusals[0].response.headers["Retry-After"]) > 0
