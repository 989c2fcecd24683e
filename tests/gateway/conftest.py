"""An OpenAI client on the shared server, with a key of its own."""

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.server import Server


@pytest.fixture(scope="package")
def key(server: Server) -> str:
    return server.make_key()


@pytest.fixture
def api(server: Server, key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60) as api:
        yield api
