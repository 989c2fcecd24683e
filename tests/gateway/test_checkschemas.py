"""manage.py checkschemas on a real process, without a database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.server import manage

LINES: list[dict[str, Any]] = [
    {"id": "person", "schema": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
     "valid": [{"name": "Ada"}], "invalid": [{"name": 1}, {}]},
    {"id": "set", "schema": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 20},
     "valid": [[1, 2]], "invalid": [[1, 1]]},
    {"id": "nothing", "schema": False, "valid": [1], "invalid": [2]},
]  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "schemas.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)))
    return path


def test_it_prints_one_object_with_all_totals(tmp_path: Path, file: Path) -> None:
    done = manage(tmp_path / "home", "checkschemas", str(file), "--json", "--generate", "40")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["totals"] == {
        "schemas": 3, "exact": 1, "relaxed": 1, "refused": 1, "valid_total": 2, "valid_accepted": 2,
        "invalid_total": 3, "invalid_rejected_by_constraint": 2, "invalid_rejected": 3,
        "generated": 2, "generated_valid": 2, "returned_invalid": 0,
    }  # fmt: skip
    assert [(each["id"], each["class"]) for each in report["results"]] == [
        ("person", "exact"), ("set", "relaxed"), ("nothing", "refused")
    ]  # fmt: skip
    assert not (tmp_path / "home/localllm.sqlite3").exists()


def test_it_says_for_each_schema_what_is_only_checked_afterwards(tmp_path: Path, file: Path) -> None:
    done = manage(tmp_path / "home", "checkschemas", str(file), "--generate", "0")
    assert "set: relaxed, shortest" in done.stdout and "uniqueItems" in done.stdout
    assert "generated: 0" in done.stdout


def test_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"id": "a", "schema": {}}\nnot json\n')
    done = manage(tmp_path / "home", "checkschemas", str(tmp_path / "bad.jsonl"), "--generate", "0")
    assert (done.returncode, done.stdout) == (1, "") and "Line 2" in done.stderr
