from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.inference.engine.detokenizer import Detokenizer


def shown(pieces, stop=()):
    detokenizer = Detokenizer(stop)
    return [detokenizer.push(piece)[1] for piece in pieces], detokenizer


def test_it_holds_back_half_a_character():
    pieces, detokenizer = shown(["日".encode()[:1], "日".encode()[1:]])
    assert pieces == ["", "日"] and detokenizer.flush()[1] == ""


def test_it_shows_a_broken_last_character_as_a_replacement():
    pieces, detokenizer = shown([b"a", "日".encode()[:2]])
    assert "".join(pieces) + detokenizer.flush()[1] == "a\ufffd"


def test_it_holds_back_what_may_become_a_stop_string():
    pieces, detokenizer = shown([b"one EN", b"D of"], stop=("END",))
    assert pieces == ["one ", ""] and detokenizer.is_stopped


def test_it_releases_what_did_not_become_a_stop_string():
    pieces, detokenizer = shown([b"one EN", b"TER"], stop=("END",))
    assert pieces == ["one ", "ENTER"] and not detokenizer.is_stopped


def test_the_earliest_stop_string_wins():
    pieces, _ = shown([b"a second first"], stop=("first", "second"))
    assert pieces == ["a "]


@pytest.mark.parametrize("stop", [(), ("",)])
def test_an_empty_stop_string_stops_nothing(stop):
    pieces, detokenizer = shown([b"text"], stop)
    assert pieces == ["text"] and not detokenizer.is_stopped


@given(st.text(), st.lists(st.integers(0, 40), max_size=6), st.sampled_from([(), ("zq",), ("a", "bb")]))
def test_the_way_the_bytes_are_cut_changes_nothing(text, cuts, stop):
    data = text.encode()
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    pieces, detokenizer = shown([data[a:b] for a, b in pairwise(edges)], stop)
    expected = min((text.find(s) for s in stop if s in text), default=len(text))
    assert "".join(pieces) + detokenizer.flush()[1] == text[:expected]
