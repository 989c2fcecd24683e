"""Thinking models: which tags their reasoning stands between, and how it is parsed apart from the answer.

Knows text only: no tokens, no template engine. A stream may be cut anywhere, within a tag too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["undecided", "reasoning", "answer"]


@dataclass(frozen=True, slots=True)
class Tags:
    opening: str
    closing: str

    def is_open(self, prompt: str) -> bool:
        """Does the prompt end within a reasoning block that it has just opened?"""
        return prompt.rstrip().endswith(self.opening)

    def begun(self, prompt: str, reasoning: str, answer: str) -> str:
        """What stands after `prompt` when so much was written already, as models of this kind write it."""
        opening = "" if self.is_open(prompt) else f"{self.opening}\n"
        if answer and (reasoning or not opening):
            return f"{opening}{reasoning}\n{self.closing}\n\n{answer}"
        return f"{opening}{reasoning}" if reasoning else answer


# Qwen3, DeepSeek-R1, GLM, SmolLM3 and most others; then EXAONE, Magistral, Seed-OSS, Command A.
KNOWN = (
    Tags("<think>", "</think>"),
    Tags("<thinking>", "</thinking>"),
    Tags("<thought>", "</thought>"),
    Tags("<reasoning>", "</reasoning>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<seed:think>", "</seed:think>"),
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),
)


def detect(chat_template: str) -> Tags | None:
    """The tags that a chat template speaks of; None for a model that does not think."""
    return next((tags for tags in KNOWN if tags.opening in chat_template or tags.closing in chat_template), None)


class ReasoningParser:
    """Parses one answer apart while it streams. The tags, and white space around them, belong to neither part.

    `is_begun`: some of the phase was written before.
    """

    def __init__(self, tags: Tags, phase: Phase = "undecided", *, is_begun: bool = False) -> None:
        self.phase = phase
        self._tags = tags
        self._held = ""  # what may still turn out to be a tag, or white space before one
        self._is_first = not is_begun  # nothing of this part was given yet

    @property
    def is_answering(self) -> bool | None:
        """Has the answer begun? None while that is not known."""
        return None if self.phase == "undecided" else self.phase == "answer" and not self._is_first

    def push(self, text: str) -> tuple[str, str]:
        """Add text; returns what can be told of it now, as reasoning and as answer."""
        self._held += text
        if self.phase == "undecided":
            self._decide()
        reasoning = self._reasoning() if self.phase == "reasoning" else ""
        return reasoning, self._answer() if self.phase == "answer" else ""

    def flush(self) -> tuple[str, str]:
        """The answer is over: what was held back."""
        rest, self._held = self._held, ""
        return (rest.rstrip(), "") if self.phase == "reasoning" else ("", rest)

    def _decide(self) -> None:
        begun = self._held.lstrip()
        if begun.startswith(self._tags.opening):
            self.phase, self._held = "reasoning", begun.removeprefix(self._tags.opening)
        elif begun and not self._tags.opening.startswith(begun):
            self.phase, self._is_first = "answer", False

    def _reasoning(self) -> str:
        if self._is_first:
            self._held = self._held.lstrip()
        told, tag, rest = self._held.partition(self._tags.closing)
        if tag:
            self.phase, self._held, self._is_first = "answer", rest, True
            return told.rstrip()
        told = told[: len(told) - _num_begun(told, self._tags.closing)].rstrip()
        self._held = self._held[len(told) :]
        self._is_first = self._is_first and not told
        return told

    def _answer(self) -> str:
        told, self._held = self._held.lstrip() if self._is_first else self._held, ""
        self._is_first = self._is_first and not told
        return told


def _num_begun(text: str, tag: str) -> int:
    """Length of the longest end of the text that begins the tag."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-n:])), 0)
