"""Whatever answers: valid data, with how it was guaranteed, or an error. Never invalid data."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.inference.json_schema.document import Document
from localllm.inference.json_schema.grammar import CompiledSchema, compile_schema
from localllm.inference.json_schema.reading import NotJson, loads, partial
from localllm.inference.json_schema.validator import Validator
from localllm.inference.structured import StructuredError, StructuredResult, instruct, sketch, structured
from localllm.inference.types import (
    ChatRequest,
    Chunk,
    Event,
    Finished,
    FinishReason,
    Message,
    TokenLogprob,
    Usage,
)

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "tags": {"type": "array", "uniqueItems": True, "items": {}}},
    "required": ["name"],
    "additionalProperties": False,
}
RELAXED = compile_schema(json.dumps(SCHEMA))
EXACT = compile_schema('{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}')
QUESTION = ChatRequest(messages=(Message("user", "Who was Ada Lovelace?"),))


class Scripted:
    """A provider that says what it was told to, one answer after the other."""

    def __init__(self, *answers: str, reason: FinishReason = "stop") -> None:
        self._answers = answers
        self._reason = reason
        self.requests: list[ChatRequest] = []

    async def __call__(self, request: ChatRequest) -> AsyncGenerator[Event]:
        text = self._answers[min(len(self.requests), len(self._answers) - 1)]
        self.requests.append(request)
        yield Chunk(text, logprobs=tuple(TokenLogprob(char.encode(), -0.1) for char in text))
        yield Finished(reason=self._reason, usage=Usage(prompt_tokens=1, completion_tokens=2), seed=1)


def ask(
    provider: Scripted, schema: CompiledSchema, *, is_constrained: bool = True, source: str = ""
) -> StructuredResult:
    async def run() -> StructuredResult:
        events = structured(provider, QUESTION, schema, is_constrained=is_constrained, source=source)
        async with aclosing(events):
            return [event async for event in events][-1]  # type: ignore[return-value]

    return asyncio.run(run())


def test_it_calls_constrained_what_was_enforced_entirely() -> None:
    result = ask(Scripted('{"name": "Ada"}'), EXACT)
    assert (result.guarantee, result.unenforced, result.attempts) == ("constrained", (), 1)


def test_it_calls_validated_what_was_checked_afterwards_and_names_it() -> None:
    result = ask(Scripted('{"name": "Ada"}'), RELAXED)
    assert result.guarantee == "validated"
    assert [note.path for note in result.unenforced] == ["/properties/tags/uniqueItems"]


def test_it_trusts_nothing_of_a_provider_that_does_not_constrain() -> None:
    result = ask(Scripted('{"name": "Ada"}'), EXACT, is_constrained=False)
    assert (result.guarantee, result.unenforced[0].keyword) == ("validated", "*")


def test_it_drops_repeated_items_where_they_must_be_unique() -> None:
    result = ask(Scripted('{"name": "Ada", "tags": [1, 2, 1, {"a": 1}, {"a": 1}]}'), RELAXED)
    assert (result.data["tags"], result.guarantee) == ([1, 2, {"a": 1}], "repaired")


@pytest.mark.parametrize(
    "answer",
    [
        'Sure! Here it is:\n```json\n{"name": "Ada"}\n```\nAnything else?',
        'The answer is {"name": "Ada",} as you wished.',
        "{'name': 'Ada'}",
        '{"thought": "the schema"} and then {"name": "Ada"}',
        '{"name": "Ada"',
        '{"name": "Ada", // the first\n}',
    ],
)
def test_it_reads_what_was_meant(answer: str) -> None:
    result = ask(Scripted(answer), EXACT if "thought" not in answer else RELAXED, is_constrained=False)
    assert (result.data, result.guarantee) == ({"name": "Ada"}, "repaired")


def test_it_asks_again_with_what_was_wrong() -> None:
    provider = Scripted('{"name": 1}', '{"name": "Ada"}')
    result = ask(provider, EXACT, is_constrained=False)
    assert (result.attempts, result.guarantee, result.usage.completion_tokens) == (2, "repaired", 4)
    assert "/name" in provider.requests[1].messages[-1].content


def test_it_gives_up_after_three_attempts_with_the_best_candidate() -> None:
    provider = Scripted("I cannot.", '{"name": 1}', "No.")
    with pytest.raises(StructuredError, match="/name") as caught:
        ask(provider, EXACT)
    assert (caught.value.kind, caught.value.candidate, len(provider.requests)) == (
        "invalid_after_retries",
        {"name": 1},
        3,
    )


def test_it_calls_truncated_what_was_cut_off() -> None:
    with pytest.raises(StructuredError) as caught:
        ask(Scripted('{"na', reason="length"), EXACT)
    assert caught.value.kind == "truncated"


def test_it_reports_for_each_field_how_sure_and_where_from() -> None:
    result = ask(Scripted('{"name": "Ada Lovelace"}'), EXACT, source="Who was Ada Lovelace?")
    report = result.fields["/name"]
    assert report.source == (8, 20)
    assert report.probability is not None
    assert 0 < report.probability < 1


@pytest.mark.parametrize("text", ["NaN", "1e400", '"\\ud800"', "[1,]", "", "{} {}", "[" * 100_000])
def test_it_reads_strictly(text: str) -> None:
    with pytest.raises(NotJson):
        loads(text)


def test_it_shows_a_document_while_it_is_written() -> None:
    assert partial('{"name": "Ada Lo') == {"name": "Ada Lo"}
    assert partial('{"name": "Ada", "ta') == {"name": "Ada"}
    assert partial('{"on": tr') == {"on": True}
    assert partial("") is None


def test_it_tells_the_model_the_schema_without_its_comments() -> None:
    long = json.dumps({"type": "object", "properties": {"a": {"type": "null", "description": "x" * 5000}}})
    assert "x" * 100 not in sketch(long)
    told = instruct((Message("system", "Be brief."), Message("user", "Hi")), long)
    assert told[0].content.startswith("Be brief.")
    assert '"a"' in told[0].content


GOOD = st.fixed_dictionaries({"name": st.text()}, optional={"tags": st.lists(st.integers())}).map(json.dumps)
NOISE = st.sampled_from(
    ["", "```json\n", "\n```", "Sure: ", "}", "{", '"', ",", "[1,2]", '{"name": 3}', "NaN", "\x00", "é"]
)


@given(st.lists(st.one_of(GOOD, NOISE, st.text(max_size=5)), max_size=5), st.integers(0, 60), st.booleans())
@settings(max_examples=150, deadline=None)
def test_it_never_returns_invalid_data(parts: list[str], cut: int, is_constrained: bool) -> None:
    text = "".join(parts)
    try:
        result = ask(Scripted(text[: len(text) - cut % 7]), RELAXED, is_constrained=is_constrained)
    except StructuredError as exc:
        assert exc.kind in ("truncated", "invalid_after_retries")
        return
    assert Validator(Document(json.dumps(SCHEMA))).is_valid(json.loads(result.text))
    assert json.loads(result.text) == result.data
