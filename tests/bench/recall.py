"""How many facts planted in conversations a summary still says: tests/bench/recall.yaml, on real models.

Beside it what the newest messages alone would say in as many tokens, which is what cutting instead of compressing
keeps, and what plain rules take out of them (`quoting`). The starter model is measured always, and the one of
LOCALLLM_MODEL where it is set.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import product
from pathlib import Path

import msgspec
import yaml

from deploy.build_llama import ROOT
from localllm.inference import chunking
from localllm.inference.compression import Compressed, CompressionError, Fact, KeyFacts, compress
from localllm.inference.engine.host import EngineHost
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.prompt_template import Template
from localllm.inference.quoting import quote
from localllm.inference.structured import StructuredError
from localllm.inference.types import ChatRequest, Event, Message, SamplingParams
from tests.bench.doors import engine
from tests.bench.measure import Bound, Figure, Report
from tests.bench.plan import Plan

DATA = Path(__file__).with_suffix(".yaml")
TEMPLATES = ROOT / "localllm/gateway/data/prompt_templates.yaml"
STARTER = ROOT / "localllm/gateway/data/starter.gguf"
BUDGETS = (128, 256)
PINNED = "Pinned: the code of the door is 4711."


class Planted(msgspec.Struct, frozen=True):
    """A conversation, the user first; each fact in all the spellings that count."""

    title: str
    turns: list[str]
    facts: list[list[str]]

    @property
    def messages(self) -> list[Message]:
        return [Message("assistant" if at % 2 else "user", text) for at, text in enumerate(self.turns)]

    def recall(self, text: str) -> float:
        """The share of facts that `text` says."""
        text = text.casefold()
        return sum(any(each.casefold() in text for each in spellings) for spellings in self.facts) / len(self.facts)


class Compressor:
    """One loaded model, asked with the shipped prompt template, or only counting where `is_quoting`."""

    def __init__(self, host: EngineHost, *, is_quoting: bool = False) -> None:
        self._host = host
        self._is_quoting = is_quoting
        shipped = yaml.safe_load(TEMPLATES.read_text())
        self._template = Template(next(each["text"] for each in shipped if each["use_case"] == "compression"))

    async def texts(self, texts: Sequence[str]) -> list[int]:
        return await self._host.count_texts(texts)

    async def messages(self, messages: tuple[Message, ...]) -> int:
        return await self._host.count(messages)

    async def summary(self, turns: Sequence[Message], budget: int, previous: KeyFacts) -> KeyFacts:
        """What compression makes of the turns; `previous` alone where nothing comes of it."""
        window = (await self._host.wait_until_ready()).window
        request = ChatRequest(messages=(), params=SamplingParams(temperature=0.0, seed=1))
        try:
            if self._is_quoting:
                return (await quote(turns, self, previous=previous, budget_tokens=budget)).facts
            items = compress(
                self._ask, request, turns, self._instruct, self, previous=previous, budget_tokens=budget, window=window
            )
            async with aclosing(items):
                async for item in items:
                    if isinstance(item, Compressed):
                        return item.facts
        except (CompressionError, StructuredError):
            pass
        return previous

    def _ask(self, request: ChatRequest) -> AsyncGenerator[Event]:
        return self._host.stream(request)

    def _instruct(self, summary: str, turns: str, max_tokens: int) -> tuple[Message, ...]:
        values = {"summary": summary or "(nothing)", "turns": turns, "max_tokens": str(max_tokens)}
        return (Message("user", self._template.render(values)),)


async def recall(plan: Plan) -> Report:
    conversations = msgspec.convert(yaml.safe_load(DATA.read_text()), list[Planted])
    models = [STARTER, *filter(None, [os.environ.get("LOCALLLM_MODEL") and Path(os.environ["LOCALLLM_MODEL"])])]
    rows, pinned = [], []
    for path in models:
        async with engine(path, EngineSettings()) as host:
            ways = {path.stem: Compressor(host)}
            if path == STARTER:
                ways["plain rules (the starter's way)"] = Compressor(host, is_quoting=True)
            for (name, model), budget in product(ways.items(), BUDGETS[:1] if plan.is_quick else BUDGETS):
                figures = [await _measure(model, each, budget) for each in conversations]
                once, twice, cut, saved, kept = (sum(values) / len(values) for values in zip(*figures, strict=True))
                rows.append([name, str(budget), *(f"{100 * share:.0f} %" for share in (once, twice, cut, saved))])
                pinned.append(100 * kept)
    head = ["summary by", "budget", "compressed once", "in two steps", "newest messages alone", "tokens saved"]
    return Report(
        [Figure("pinned facts after two compressions", "%", pinned, wanted=Bound("≥", 100))],
        table=[head, *rows],
        notes=[
            f"Shares of {sum(len(each.facts) for each in conversations)} facts in {len(conversations)} conversations, "
            "found by their spelling; temperature 0, with the shipped prompt template."
        ],
        model=", ".join(path.name for path in models),
    )


async def _measure(model: Compressor, planted: Planted, budget: int) -> tuple[float, float, float, float, float]:
    """Recall at once, in two steps, and of the newest messages; the share of tokens saved; pinned facts kept."""
    turns, half = planted.messages, len(planted.turns) // 4 * 2
    transcript = "\n".join(planted.turns)
    once = await model.summary(turns, budget, KeyFacts())
    first = await model.summary(turns[:half], budget, KeyFacts(decisions=(Fact(PINNED, is_pinned=True),)))
    twice = await model.summary(turns[half:], budget, first)
    newest = (await chunking.chunks("\n".join(reversed(planted.turns)), budget, model))[0]
    saved = 1 - await chunking.count(once.text, model) / await chunking.count(transcript, model)
    texts = (once.text, twice.text, newest)
    return (*map(planted.recall, texts), saved, float(PINNED in twice.text))  # type: ignore[return-value]
