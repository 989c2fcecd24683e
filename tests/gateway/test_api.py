"""What OpenAI's own client finds at /v1 of a real server with the starter model."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion

from tests.server import Server

HELLO: list[Any] = [{"role": "user", "content": "Who are you?"}]
# Every token said before, the end of a turn among them, becomes unlikely: it goes on for long.
ENDLESS: dict[str, Any] = {
    "temperature": 2, "top_k": 0, "min_p": 0, "top_p": 1, "seed": 1,
    "presence_penalty": 2, "frequency_penalty": 2, "repeat_penalty": 3,
}  # fmt: skip


def ask(api: OpenAI, **parameters: Any) -> ChatCompletion:
    return api.chat.completions.create(**{"model": "default", "messages": HELLO} | parameters)


def post(server: Server, key: str, body: bytes, path: str = "/v1/chat/completions") -> tuple[int, dict[str, Any]]:
    status, text = post_for_text(server, key, body, path)
    return status, json.loads(text)


def post_for_text(server: Server, key: str, body: bytes, path: str = "/v1/chat/completions") -> tuple[int, str]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.request("POST", path, body, {"Authorization": f"Bearer {key}"})
        response = connection.getresponse()
        return response.status, response.read().decode()


def request(
    server: Server, method: str, path: str, headers: dict[str, str] | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    """The answer to a request without a body, whatever its headers say, and what is in it."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response, response.read()


def usage_rows(server: Server, where: str) -> int:
    with closing(sqlite3.connect(server.home / "localllm.sqlite3", timeout=10)) as database:
        return int(database.execute(f"SELECT COUNT(*) FROM gateway_usagelog WHERE {where}").fetchone()[0])


def until(is_so: Callable[[], bool], limit_s: float = 20) -> bool:
    end = time.monotonic() + limit_s
    while not is_so() and time.monotonic() < end:
        time.sleep(0.05)
    return is_so()


# Models


def test_it_lists_the_models_with_the_default_first(api: OpenAI) -> None:
    assert [model.id for model in api.models.list()] == ["default", "starter"]


def test_it_retrieves_a_model_by_name(api: OpenAI) -> None:
    assert api.models.retrieve("starter").id == "starter"
    with pytest.raises(openai.NotFoundError, match="starter"):
        api.models.retrieve("gpt-5")


# Answers


def test_it_answers_with_usage_and_where_it_came_from(api: OpenAI) -> None:
    answer = ask(api, temperature=0)
    assert answer.choices[0].finish_reason == "stop" and answer.model == "starter"
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content
    assert answer.usage and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    about = answer.model_extra["localllm"]  # type: ignore[index]
    assert about["provider"] == "llama.cpp" and len(about["model_sha256"]) == 64 and answer.system_fingerprint


def test_it_speaks_as_itself_when_no_system_prompt_is_sent(api: OpenAI) -> None:
    assert "LocalLLM" in str(ask(api, temperature=0).choices[0].message.content)


def test_a_stream_says_the_same_as_one_answer(api: OpenAI) -> None:
    whole = ask(api, temperature=0).choices[0].message.content
    chunks = list(api.chat.completions.create(model="default", messages=HELLO, temperature=0, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]


def test_a_stream_ends_with_its_usage_when_asked(api: OpenAI) -> None:
    *_, last = api.chat.completions.create(
        model="default", messages=HELLO, max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == [] and last.usage and last.usage.completion_tokens == 5


def test_the_same_seed_says_the_same_thing(api: OpenAI) -> None:
    # On a prompt of its own, so that the cache is cold only once: the prompt is computed the same way both times.
    answers = {ask(api, seed=42, temperature=1).choices[0].message.content for _ in range(2)}
    assert len(answers) == 1


def test_it_stops_at_a_stop_string_and_does_not_show_it(api: OpenAI) -> None:
    whole = str(ask(api, temperature=0).choices[0].message.content)
    stop = whole.split()[2]
    cut = ask(api, temperature=0, stop=[stop]).choices[0]
    assert cut.message.content == whole.partition(stop)[0] and cut.finish_reason == "stop"


def test_it_says_when_it_was_cut_by_max_tokens(api: OpenAI) -> None:
    answer = ask(api, max_completion_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage and answer.usage.completion_tokens == 3


def test_it_tells_the_probabilities_of_tokens(api: OpenAI) -> None:
    answer = ask(api, temperature=0, logprobs=True, top_logprobs=3, max_tokens=4).choices[0]
    assert answer.logprobs and answer.logprobs.content and len(answer.logprobs.content) == 4
    for token in answer.logprobs.content:
        assert len(token.top_logprobs) == 3 and token.logprob == token.top_logprobs[0].logprob <= 0


def test_a_follow_up_reuses_what_is_computed(api: OpenAI) -> None:
    first = ask(api, temperature=0)
    turns = [*HELLO, {"role": "assistant", "content": first.choices[0].message.content}]
    usage = ask(api, messages=[*turns, {"role": "user", "content": "Thanks."}], max_tokens=2).usage
    assert usage and usage.prompt_tokens_details
    assert (usage.prompt_tokens_details.cached_tokens or 0) >= first.usage.prompt_tokens  # type: ignore[union-attr]


def test_it_takes_text_in_parts(api: OpenAI) -> None:
    parts = [{"type": "text", "text": "Who are"}, {"type": "text", "text": " you?"}]
    whole, split = (
        ask(api, messages=[{"role": "user", "content": content}], temperature=0) for content in ("Who are you?", parts)
    )
    assert whole.choices[0].message.content == split.choices[0].message.content


def test_ten_requests_at_once_on_one_key_are_all_answered(api: OpenAI) -> None:
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: ask(api, max_tokens=8), range(10)))
    assert all(answer.usage and answer.usage.completion_tokens for answer in answers)


def test_parameters_that_change_nothing_are_allowed(api: OpenAI) -> None:
    answer = ask(
        api, max_tokens=1, n=1, user="u", metadata={"a": "b"}, store=False, logit_bias={}, tools=[],
        frequency_penalty=0, presence_penalty=0, response_format={"type": "text"}, service_tier="auto",
        extra_body={"top_k": 5, "min_p": 0.1, "repeat_penalty": 1.1, "something": None},
    )  # fmt: skip
    assert answer.choices


# Refusals


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "stop": "}"}, "stop"),
        ({"extra_body": {"best_of": 3}}, "best_of"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"max_tokens": "5"}}, "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "y"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
    ],
)
def test_it_refuses_what_it_would_have_to_ignore_and_names_it(
    server: Server, key: str, parameters: dict[str, Any], param: str
) -> None:
    body = {"messages": HELLO} | parameters.pop("extra_body", {}) | parameters
    status, answer = post(server, key, json.dumps(body).encode())
    assert status == 400 and answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == param and param in answer["error"]["message"]


def test_it_refuses_images(api: OpenAI) -> None:
    image: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    with pytest.raises(openai.BadRequestError, match="text only"):
        ask(api, messages=[{"role": "user", "content": [image]}])


@pytest.mark.parametrize("messages", [[{"role": "user", "content": "word " * 5000}], HELLO])
def test_it_refuses_what_does_not_fit_the_context(api: OpenAI, messages: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(api, messages=messages, max_tokens=1020)
    assert caught.value.code == "context_length_exceeded" and "1024" in caught.value.message


def test_a_stream_that_does_not_fit_is_refused_before_it_begins(api: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="1024"):
        api.chat.completions.create(model="default", messages=HELLO, max_tokens=1024, stream=True)


@pytest.mark.parametrize("key", ["sk-wrong", "", "Bearer"])
def test_it_says_how_to_make_a_key(server: Server, key: str) -> None:
    status, answer = post(server, key, b"{}")
    assert status == 401 and "createapikey" in answer["error"]["message"]
    assert answer["error"]["code"] == "invalid_api_key"


def test_a_key_remembers_its_use_and_is_known_while_the_database_is_locked(
    server: Server, api: OpenAI, key: str
) -> None:
    api.models.list()
    with closing(sqlite3.connect(server.home / "localllm.sqlite3", timeout=10, isolation_level=None)) as database:
        used_lately = "SELECT last_used_at > datetime('now', '-2 minutes') FROM gateway_apikey WHERE prefix = ?"
        assert database.execute(used_lately, [key[:8]]).fetchone() == (1,)
        database.execute("BEGIN IMMEDIATE")
        assert api.models.list()
        database.execute("ROLLBACK")


def test_a_cookie_is_no_key(server: Server) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
        connection.request("GET", "/v1/models", headers={"Cookie": "sessionid=x"})
        assert connection.getresponse().status == 401


def test_an_unknown_model_is_named_with_those_there_are(api: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="starter") as caught:
        ask(api, model="gpt-5")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"messages": NaN}'])
def test_it_survives_bodies_that_are_no_request(server: Server, key: str, body: bytes) -> None:
    status, answer = post(server, key, body)
    assert status == 400 and answer["error"]["message"].endswith(".")


def test_a_body_that_is_too_large_is_a_413(server: Server, key: str) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x" * (3 << 20)}]}).encode()
    status, answer = post(server, key, body)
    assert status == 413 and "too large" in answer["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/local-llm/structured"])
def test_a_body_over_the_servers_own_limit_is_refused_in_the_same_shape(server: Server, path: str) -> None:
    refused, body = request(server, "POST", path, {"Content-Length": str(10**12)})
    assert refused.status == 413 and refused.headers["Content-Type"] == "application/json"
    assert "2,097,152 bytes" in json.loads(body)["error"]["message"]


def test_a_page_says_in_plain_words_that_a_body_is_too_large(server: Server) -> None:
    refused, body = request(server, "POST", "/login/", {"Content-Length": str(10**12)})
    assert refused.status == 413 and body == b"The body is too large: at most 16,777,216 bytes are taken."


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/models", "GET"),
        ("PUT", "/api/local-llm/structured", "POST"),
    ],
)
def test_a_wrong_method_answers_in_the_same_shape(server: Server, method: str, path: str, allowed: str) -> None:
    refused, body = request(server, method, path)
    assert (refused.status, refused.headers["Allow"]) == (405, allowed)
    error = json.loads(body)["error"]
    assert (
        error["type"] == "invalid_request_error"
        and error["message"] == f"{path} does not take {method}. Use {allowed}."
    )


def test_an_address_that_is_not_there_answers_in_the_same_shape(server: Server, key: str) -> None:
    status, answer = post(server, key, b"{}", "/v1/embeddings")
    assert status == 404 and "/v1/chat/completions" in answer["error"]["message"]


# Clients that go away


def test_a_client_that_leaves_a_stream_cancels_it(server: Server, key: str) -> None:
    before = usage_rows(server, "finish_reason = 'cancelled'")
    with closing(connect(server, key, {"stream": True} | ENDLESS)) as connection:
        assert connection.getresponse().readline().startswith(b"data: ")
        with frozen(server):  # however fast this machine is, the answer is not over
            connection.close()
            assert until(lambda: usage_rows(server, "finish_reason = 'cancelled'") == before + 1)


def test_a_client_that_does_not_wait_for_its_answer_cancels_it(server: Server, key: str) -> None:
    before = usage_rows(server, "finish_reason = 'cancelled'")
    with frozen(server):
        for patience_s in (0.2, 1, 5):  # it must have reached the engine
            with closing(connect(server, key, {})):
                time.sleep(patience_s)
            if until(lambda: usage_rows(server, "finish_reason = 'cancelled'") > before, limit_s=patience_s):
                return
    pytest.fail("No generation was cancelled.")


def connect(server: Server, key: str, parameters: dict[str, Any]) -> http.client.HTTPConnection:
    """Ask, and do not read the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    body = json.dumps({"messages": HELLO} | parameters)
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {key}"})
    return connection


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    """The engine stands still."""
    (pid,) = server.worker_pids
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_clients_that_come_and_go_leave_no_slot_taken(server: Server, key: str, api: OpenAI) -> None:
    for connection in [connect(server, key, {"stream": True} | ENDLESS) for _ in range(12)]:
        connection.close()
    assert ask(api, max_tokens=2).choices


def test_every_answer_is_in_the_usage_log(server: Server, api: OpenAI) -> None:
    count = "source = 'api' AND finish_reason = 'length' AND completion_tokens = 3 AND api_key_id IS NOT NULL"
    before = usage_rows(server, count)
    ask(api, max_tokens=3, temperature=0)
    assert until(lambda: usage_rows(server, count) == before + 1)
