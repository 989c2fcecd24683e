"""The floors of the house: imports only point down, and some libraries have a doorkeeper."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"localllm.inference": 0, "localllm.gateway": 1, "chat": 2, "schemas_app": 2, "localllm": 3}
DOORKEEPERS = {
    "llama_cpp": ["localllm/inference/engine/runner.py", "localllm/inference/engine/quantise.py"],
    "llguidance": [
        "localllm/inference/engine/constraint.py",
        "localllm/inference/engine/lookahead.py",
        "localllm/inference/json_schema/grammar.py",
    ],
    "daphne": ["localllm/serve.py"],
    "diskcache": [],  # unsafe pickles; llama-cpp-python only names it
}
FILES = [
    str(path.relative_to(ROOT))
    for package in ("localllm", "chat", "schemas_app")
    for path in sorted(ROOT.glob(f"{package}/**/*.py"))
]


def imports(file: str, source: str) -> Iterator[str]:
    """Absolute dotted names of everything that the file imports, wherever in it."""
    package = file.split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*parents, *filter(None, [node.module])])
            yield from (f"{module}.{name.name}" for name in node.names)


def floor_of(name: str) -> str | None:
    return next((floor for floor in FLOORS if f"{name}.".startswith(f"{floor}.")), None)


def broken_rules(file: str, source: str) -> list[str]:
    here = floor_of(file.removesuffix(".py").replace("/", ".")) or ""
    broken = []
    for name in imports(file, source):
        there, library = floor_of(name) or here, name.partition(".")[0]
        if there != here and FLOORS[there] >= FLOORS[here]:
            broken.append(f"{here} imports {name}, which does not lie below it")
        if library in DOORKEEPERS and file not in DOORKEEPERS[library]:
            broken.append(f"{file} imports {library}, but {DOORKEEPERS[library] or 'no file'} alone may")
        if here == "localllm.inference" and library in ("django", "channels"):
            broken.append(f"{here} imports {name}, but must work without Django")
    return broken


@pytest.mark.parametrize("file", FILES)
def test_it_imports_only_what_lies_below(file: str) -> None:
    assert broken_rules(file, (ROOT / file).read_text()) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("chat/views.py", "from schemas_app.models import Schema"),
        ("localllm/gateway/completions.py", "import chat.models"),
        ("localllm/gateway/completions.py", "from localllm import settings"),
        ("localllm/inference/types.py", "from ..gateway import completions"),
        ("localllm/inference/types.py", "def later():\n    from django.db import models"),
        ("localllm/inference/engine/engine.py", "import llama_cpp"),
        ("localllm/inference/structured.py", "from llguidance import LLMatcher"),
        ("localllm/asgi.py", "from daphne.server import Server"),
        ("localllm/inference/engine/runner.py", "import diskcache"),
    ],
)
def test_it_notices_a_wrong_import(file: str, source: str) -> None:
    assert len(broken_rules(file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("chat/models.py", "from localllm.gateway.models import UsageLog\nfrom . import live"),
        ("localllm/inference/engine/runner.py", "import llama_cpp\nfrom ..types import Chunk"),
        ("localllm/asgi.py", "from chat.consumers import ChatConsumer\nfrom schemas_app import views"),
        ("localllm/serve.py", "from daphne.server import Server"),
    ],
)
def test_it_allows_a_right_import(file: str, source: str) -> None:
    assert broken_rules(file, source) == []


def test_no_rule_of_the_stylesheet_is_left_open() -> None:
    """A layer that is left open swallows those that follow, which then lose against rules that they should win over."""
    depth = 0
    for number, line in enumerate((ROOT / "static/css/app.css").read_text().splitlines(), 1):
        assert not line.startswith("@layer") or depth == 0, f"line {number} begins a layer inside of another one"
        depth += line.count("{") - line.count("}")
    assert depth == 0
