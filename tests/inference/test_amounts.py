"""Amounts as people read them."""

import pytest

from localllm.inference.amounts import duration, pace, size


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 kB"),
        (4_096, "4 kB"),
        (3_500_000, "3.5 MB"),
        (350_600_000, "351 MB"),
        (999_700_000, "1.0 GB"),
        (4_920_000_000, "4.9 GB"),
    ],
)
def test_a_size_has_the_unit_that_suits_it(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (91, "2 min"), (7_500, "2 h 5 min")])
def test_a_duration_is_rounded_up(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_pace_is_told_in_whole_tokens() -> None:
    assert [pace(speed) for speed in (25.3, 4.6, 0.4)] == ["25", "5", "less than 1"]
