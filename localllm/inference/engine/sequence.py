"""One request as the engine sees it: its tokens, its slot and its counters. No llama.cpp, no threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from localllm.inference.engine.constraint import Constraint
from localllm.inference.engine.detokenizer import Detokenizer
from localllm.inference.errors import ProviderError
from localllm.inference.reasoning import ReasoningParser
from localllm.inference.types import Chunk, Event, Finished, FinishReason, SamplingParams, TokenLogprob, Usage

Emit = Callable[[Event | ProviderError], None]


@dataclass(eq=False, slots=True)
class Sequence:
    """A prompt and the tokens generated after it.

    `num_shared` counts the leading tokens that are no user's own (those before the first user
    message): only these may come from another owner's cache. `next_prompt` gives, when all is said, the
    token ids that the prompt of the conversation's next turn begins with.
    """

    tokens: list[int]
    params: SamplingParams
    seed: int
    max_tokens: int
    emit: Emit
    owner: str = ""
    num_shared: int = 0
    constraint: Constraint | None = None  # what the answer must be decoded by
    parser: ReasoningParser | None = None  # parses the reasoning of a thinking model apart
    next_prompt: Callable[[], list[int]] | None = None
    was_accepted: bool = False  # before its engine ended: a full queue does not refuse it
    num_computed: int = 0  # how many of `tokens` are in the KV cache
    num_reused: int = 0
    slot: int | None = None  # llama.cpp's seq_id; None while waiting
    sampler: Any = None  # the runner's; opaque here
    cancelled: bool = False
    place: int = 0  # last place in line that was told
    held_logprobs: list[TokenLogprob] = field(default_factory=list)  # of tokens that may turn out to be reasoning
    num_prompt_tokens: int = field(init=False)
    detokenizer: Detokenizer = field(init=False)
    submitted_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    first_token_at: float | None = None

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.tokens)
        self.detokenizer = Detokenizer(self.params.stop, self.parser)

    @property
    def num_pending(self) -> int:
        """Tokens that are not computed yet: many when new; one when decoding, or more where some were forced."""
        return len(self.tokens) - self.num_computed

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def is_decoding(self) -> bool:
        return self.num_computed >= self.num_prompt_tokens

    def shown(self, tokens: list[int], pieces: list[bytes], logprobs: tuple[TokenLogprob, ...]) -> Chunk:
        """The next tokens as their reader sees them. `pieces` lacks the token that ends the turn."""
        reasoning, text = "", ""
        told: list[TokenLogprob] = []
        for at, piece in enumerate(pieces):
            more_reasoning, more_text = self.detokenizer.push(piece)
            reasoning, text = reasoning + more_reasoning, text + more_text
            self.held_logprobs += logprobs[at : at + 1]
            if self.detokenizer.is_answering:
                told += self.held_logprobs
            if self.detokenizer.is_answering is not None:
                self.held_logprobs.clear()
        return Chunk(text, tuple(tokens), tuple(told), reasoning)

    def finished(self, reason: FinishReason, window: int) -> Finished:
        """The closing event, with the account of what this request took."""
        now = time.monotonic()
        started = self.started_at or now
        return Finished(
            reason=reason,
            seed=self.seed,
            usage=Usage(
                prompt_tokens=self.num_prompt_tokens,
                reused_tokens=self.num_reused,
                completion_tokens=self.num_generated,
                queue_s=started - self.submitted_at,
                ttft_s=(self.first_token_at or now) - self.submitted_at,
                duration_s=now - self.submitted_at,
                window=window,
            ),
        )
