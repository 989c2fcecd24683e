"""/v1 with a thinking model: reasoning beside the answer, never in it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from tests.gateway.test_response_format import PERSON, WILD, ask, is_valid
from tests.inference.test_thinking import thinking_starter
from tests.server import Server


@pytest.fixture(scope="module")
def thinking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("thinking")
    with Server(folder / "home", LOCALLLM_MODEL=str(thinking_starter(folder / "thinking.gguf"))) as server:
        yield server


@pytest.fixture(scope="module")
def api(thinking_server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{thinking_server.url}/v1", api_key=thinking_server.make_key(), max_retries=0) as api:
        yield api


def test_an_answer_has_its_reasoning_beside_it(api: OpenAI) -> None:
    message = ask(api, PERSON, **WILD).choices[0].message
    assert message.reasoning_content and is_valid(PERSON, message.content)


def test_a_stream_has_reasoning_before_text(api: OpenAI) -> None:
    deltas = [chunk.choices[0].delta for chunk in ask(api, PERSON, stream=True, **WILD)]
    assert is_valid(PERSON, "".join(delta.content or "" for delta in deltas))
    kinds = [
        "reasoning" if hasattr(delta, "reasoning_content") else "text"
        for delta in deltas[1:]
        if delta.model_extra or delta.content
    ]
    assert kinds[0] == "reasoning" and kinds[-1] == "text" and kinds == sorted(kinds)


@pytest.mark.parametrize("phase", ["reasoning_content", "content"])
def test_an_answer_survives_the_end_of_the_engine_in_either_phase(
    thinking_server: Server, api: OpenAI, phase: str
) -> None:
    schema = {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}, "minItems": 30}
    texts: dict[str, list[str]] = {"reasoning_content": [], "content": []}
    killed: list[int] = []
    for chunk in ask(api, schema, stream=True, max_tokens=900, **WILD):
        delta: dict[str, Any] = chunk.choices[0].delta.to_dict()
        for name, parts in texts.items():
            parts += [delta[name]] if delta.get(name) else []
        if len(texts[phase]) == 4 and not killed:
            killed += thinking_server.worker_pids
            os.kill(killed[0], signal.SIGKILL)
    assert killed and texts["reasoning_content"] and is_valid(schema, "".join(texts["content"]))
