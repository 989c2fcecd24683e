"""What differs between two versions."""

from __future__ import annotations

from schemas_app.comparison import compare
from schemas_app.models import SchemaVersion


def test_only_the_parts_that_differ_are_compared() -> None:
    before, after = SchemaVersion(text="{}"), SchemaVersion(text="{}", temperature=1, examples=[])
    assert [part.title for part in compare(before, after)] == ["Settings"]
