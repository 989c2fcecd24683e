"""A real server with memory for one model: who asks for another one is told, over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import openai
import pytest

from localllm.inference.engine.gguf import read_header
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.memory import account, this_machine
from tests.inference.engine_on_starter import STARTER
from tests.server import Server

MESSAGES = [{"role": "user", "content": "Tell me all."}]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    machine = this_machine()
    need = account(read_header(STARTER), EngineSettings(n_ctx=1024), machine).used_bytes
    home = tmp_path_factory.mktemp("home")
    with Server(home, LOCALLLM_MEMORY_SHARE=str(1.5 * need / machine.total_bytes)) as server:
        done = server.manage("registermodel", str(shutil.copy(STARTER, home / "other.gguf")), "--name", "other")
        assert done.returncode == 0, done.stderr
        yield server


@pytest.fixture(scope="module")
def api(small: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{small.url}/v1", api_key=small.make_key(), max_retries=0, timeout=60) as api:
        yield api


def test_who_finds_no_room_gets_503_with_the_holder_and_a_time(small: Server, api: openai.OpenAI) -> None:
    stream = api.chat.completions.create(
        model="starter", messages=MESSAGES, stream=True, max_tokens=700, temperature=2, seed=1
    )  # type: ignore[call-overload]
    next(stream)
    small.pause()
    with pytest.raises(openai.InternalServerError, match=r"starter .* is in use") as caught:
        api.chat.completions.create(model="other", messages=MESSAGES)  # type: ignore[arg-type]
    assert (caught.value.status_code, caught.value.code) == (503, "insufficient_memory")
    assert int(caught.value.response.headers["Retry-After"]) > 0
    small.go_on()
    stream.close()


def test_an_idle_model_makes_room_for_the_next(small: Server, api: openai.OpenAI) -> None:
    for model in ("starter", "other", "starter"):
        answer = api.chat.completions.create(model=model, messages=MESSAGES, max_tokens=5)  # type: ignore[arg-type]
        assert answer.model == model and len(small.worker_pids) == 1
