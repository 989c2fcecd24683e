"""What differs between two texts, as lines of two columns."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from localllm.inference.side_by_side import MAX_LINES, side_by_side

LINES = st.lists(st.sampled_from("abc"), max_size=12).map("\n".join)


@given(LINES, LINES)
def test_both_texts_can_be_read_off_the_lines(old: str, new: str) -> None:
    lines = list(side_by_side(old, new, context=99))
    if old != new:
        assert "\n".join(line.before[1] for line in lines if line.before) == old
        assert "\n".join(line.after[1] for line in lines if line.after) == new


def test_lines_carry_their_numbers() -> None:
    lines = list(side_by_side("a\nb\nc", "a\nx\ny\nc"))
    assert [(line.kind, line.before, line.after) for line in lines] == [
        ("same", (1, "a"), (1, "a")),
        ("changed", (2, "b"), (2, "x")),
        ("changed", None, (3, "y")),
        ("same", (3, "c"), (4, "c")),
    ]


def test_what_is_the_same_far_away_is_left_out() -> None:
    same = "\n".join("abcdefghijkl")
    kinds = [line.kind for line in side_by_side(f"{same}\nold\n{same}", f"{same}\nnew\n{same}")]
    assert kinds == ["left_out", *["same"] * 3, "changed", *["same"] * 3, "left_out"]


def test_very_long_texts_are_shown_whole() -> None:
    old, new = "\n".join(map(str, range(MAX_LINES + 1))), "new"
    assert len(list(side_by_side(old, new))) == MAX_LINES + 1
