"""The real engine on the starter model, stepped by the test instead of by its own thread."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from localllm.inference.engine.constraint import Constraint, Grammar
from localllm.inference.engine.engine import Engine
from localllm.inference.engine.runner import Runner
from localllm.inference.engine.sequence import Sequence
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import ProviderError
from localllm.inference.json_schema.grammar import compile_schema
from localllm.inference.types import Chunk, Event, Finished, SamplingParams, TokenLogprob, Waiting

STARTER = Path(__file__).parents[2] / "localllm/gateway/data/starter.gguf"
SYSTEM = "You are LocalLLM, a small starter model. Answer briefly."


def prompt(*turns: str, system: str = SYSTEM) -> str:
    """ChatML: a system message, then user and assistant turns in alternation."""
    text = f"<|im_start|>system\n{system}<|im_end|>\n"
    for i, turn in enumerate(turns):
        text += f"<|im_start|>{'assistant' if i % 2 else 'user'}\n{turn}<|im_end|>\n"
    return text + "<|im_start|>assistant\n"


@dataclass(eq=False)
class Reader:
    """What one request was told."""

    events: list[Event | ProviderError] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Chunk))

    @property
    def token_ids(self) -> list[int]:
        return [id for event in self.events if isinstance(event, Chunk) for id in event.token_ids]

    @property
    def logprobs(self) -> list[TokenLogprob]:
        return [each for event in self.events if isinstance(event, Chunk) for each in event.logprobs]

    @property
    def places(self) -> list[int]:
        return [event.place for event in self.events if isinstance(event, Waiting)]

    @property
    def finished(self) -> Finished:
        assert isinstance(self.events[-1], Finished), self.events[-1]
        return self.events[-1]


class StarterEngine:
    def __init__(self, **settings: object) -> None:
        chosen = EngineSettings(**settings)  # type: ignore[arg-type]
        self.runner = Runner(STARTER, chosen)
        self.engine = Engine(self.runner, max_batch_tokens=chosen.n_batch, max_waiting=chosen.max_waiting)
        self.scheduler = self.engine._scheduler
        self.last: Sequence | None = None

    def ask(
        self,
        text: str,
        *,
        owner: str = "alice",
        seed: int = 1,
        constraint: Constraint | None = None,
        next_prompt: Callable[[], list[int]] | None = None,
        was_accepted: bool = False,
        **params: object,
    ) -> Reader:
        """Put a request in the line; nothing is computed before `step` or `run`."""
        reader = Reader()
        sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": 80, **params})  # type: ignore[arg-type]
        head = text.partition("<|im_start|>user\n")[0] + "<|im_start|>user\n"
        self.last = Sequence(
            self.runner.tokenize(text, special=True),
            sampling,
            seed,
            sampling.max_tokens or 80,
            reader.events.append,
            owner,
            num_shared=len(self.runner.tokenize(head, special=True)),
            constraint=constraint,
            next_prompt=next_prompt,
            was_accepted=was_accepted,
        )
        self.engine._accept(self.last)
        return reader

    def constraint(self, schema: object, budget: int) -> Constraint:
        compiled = compile_schema(json.dumps(schema))
        return Grammar(compiled.grammar, self.runner.vocabulary, compiled.examples).start(budget)

    def ask_json(self, schema: object, *, max_tokens: int = 80, seed: int = 1, **params: object) -> Reader:
        """Ask for a document of `schema`, in a conversation of its own."""
        constraint = self.constraint(schema, max_tokens)
        return self.ask(prompt("Who are you?"), seed=seed, max_tokens=max_tokens, constraint=constraint, **params)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.engine.step()

    def run(self) -> None:
        """Compute until nobody waits or runs."""
        while not self.scheduler.is_idle:
            self.engine.step()
