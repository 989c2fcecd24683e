"""The form of one loaded model's answers: how its reasoning is parsed apart, and what a schema lets it write.

Knows the model's tags and vocabulary; nothing of templates, slots or batches.
"""

from __future__ import annotations

from functools import cached_property

from localllm.inference.engine.constraint import Constraint, Grammars, Preface
from localllm.inference.engine.runner import Runner
from localllm.inference.reasoning import Phase, ReasoningParser, Tags
from localllm.inference.types import ChatRequest


class AnswerFormat:
    """`opens_reasoning`, wherever it is asked: the prompt itself has begun the reasoning of the answer."""

    def __init__(self, runner: Runner, tags: Tags | None) -> None:
        self._runner = runner
        self._tags = tags
        if tags:
            self._opening = runner.tokenize(tags.opening + "\n", special=True)
            self._closing = runner.tokenize(tags.closing, special=True)
            runner.show((*self._opening, *self._closing))

    def parser(self, request: ChatRequest, *, opens_reasoning: bool) -> ReasoningParser | None:
        """What parses the reasoning of a thinking model apart, unless that is over already."""
        if self._tags is None or request.prefix:
            return None
        phase: Phase = "reasoning" if opens_reasoning or request.reasoning else "undecided"
        return ReasoningParser(self._tags, phase, is_begun=bool(request.reasoning))

    def constraint(self, request: ChatRequest, max_tokens: int, *, opens_reasoning: bool) -> Constraint | None:
        """What the answer is decoded by, brought to where the prefix ends."""
        wanted = request.response_format
        if wanted is None:
            return None
        grammar = self._grammars.get(wanted.digest, wanted.grammar, wanted.examples)
        written = grammar.vocabulary.tokenizer.tokenize_str(request.prefix)
        constraint = grammar.start(max_tokens + len(written), self._preface(request, opens_reasoning))
        constraint.replay(written)
        return constraint

    @cached_property
    def _grammars(self) -> Grammars:
        """Made when the first schema comes: a large vocabulary takes some tenths of a second."""
        return Grammars(self._runner.vocabulary)

    def _preface(self, request: ChatRequest, opens_reasoning: bool) -> Preface | None:
        """The reasoning that may come before a document."""
        if self._tags is None or request.prefix:
            return None
        return Preface(tuple(self._opening), tuple(self._closing), opens_reasoning or bool(request.reasoning))
