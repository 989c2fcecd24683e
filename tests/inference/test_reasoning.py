"""Reasoning parsed apart from the answer, however the stream is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.inference.engine.chat_template import FALLBACK
from localllm.inference.reasoning import KNOWN, Phase, ReasoningParser, Tags, detect

THINK = Tags("<think>", "</think>")
# Texts in which a tag may begin, and not end, anywhere.
TEXTS = st.text(alphabet="<think/> a\nb", max_size=20).filter(lambda text: "</think>" not in text)


def parse(pieces: list[str], phase: Phase = "undecided") -> tuple[str, str]:
    parser = ReasoningParser(THINK, phase)
    parts = [*(parser.push(piece) for piece in pieces), parser.flush()]
    return "".join(reasoning for reasoning, _ in parts), "".join(answer for _, answer in parts)


def cut(text: str, edges: list[int]) -> list[str]:
    return [text[a:b] for a, b in pairwise(sorted({0, len(text), *(edge % (len(text) + 1) for edge in edges)}))]


@given(TEXTS, st.text(max_size=10), st.lists(st.integers(0, 60), max_size=12))
def test_it_parses_the_same_however_the_stream_is_cut(thought: str, answer: str, edges: list[int]) -> None:
    text = f"<think>\n{thought}\n</think>\n\n{answer}"
    assert parse(cut(text, edges)) == (thought.strip(), answer.lstrip())


@given(TEXTS, st.text(max_size=10), st.lists(st.integers(0, 60), max_size=12))
def test_it_parses_what_the_prompt_has_opened(thought: str, answer: str, edges: list[int]) -> None:
    assert parse(cut(f"{thought}</think>{answer}", edges), "reasoning") == (thought.strip(), answer.lstrip())


@given(st.text(max_size=20), st.lists(st.integers(0, 20), max_size=6))
def test_an_answer_without_reasoning_is_left_as_it_is(answer: str, edges: list[int]) -> None:
    if not answer.lstrip().startswith("<think>"):
        assert parse(cut(answer, edges)) == ("", answer)


def test_a_tag_within_the_answer_is_text() -> None:
    assert parse(["Use <think> and </think>."]) == ("", "Use <think> and </think>.")


def test_reasoning_that_is_cut_off_is_no_answer() -> None:
    assert parse(["<think>I wonder", " </thi"]) == ("I wonder </thi", "")


@pytest.mark.parametrize("tags", KNOWN, ids=lambda tags: tags.opening)
def test_it_finds_the_tags_in_a_chat_template(tags: Tags) -> None:
    assert detect(FALLBACK + f"{{{{ content.split('{tags.closing}')[-1] }}}}") == tags


def test_a_template_without_tags_is_of_a_model_that_does_not_think() -> None:
    assert detect(FALLBACK) is None


@pytest.mark.parametrize("prompt", ["<|assistant|>\n", "<|assistant|>\n<think>\n"])
def test_what_was_written_goes_on_as_the_model_would_have_written_it(prompt: str) -> None:
    begun = "<think>\nHm" if not THINK.is_open(prompt) else "Hm"
    assert THINK.begun(prompt, "Hm", "") == begun
    assert THINK.begun(prompt, "Hm", "Yes") == f"{begun}\n</think>\n\nYes"


def test_an_answer_that_began_without_reasoning_goes_on_without() -> None:
    assert THINK.begun("<|assistant|>\n", "", "Yes") == "Yes"
