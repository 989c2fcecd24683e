"""Passages lose nothing of a text, and those come first that answer the question."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.inference.documents.passages import MAX_CHARS, choose, spans

TOWNS = "\n\n".join(
    f"Town number {n} was founded in {1000 + n}. " + "It has a church, a market and many houses. " * 12
    for n in range(100)
)
texts = st.text(st.sampled_from("ab. \n!é😀。"), max_size=5_000)


@given(texts)
@settings(deadline=None)
def test_everything_is_in_one_passage_but_white_space(text):
    found = spans(text)
    assert "".join("".join(text[start:end] for start, end in found).split()) == "".join(text.split())
    assert all(end <= following for (_, end), (following, _) in pairwise(found))
    assert all(0 < end - start <= MAX_CHARS for start, end in found)


def test_it_cuts_between_paragraphs_and_sentences():
    ends = {TOWNS[end - 1] for _, end in spans(TOWNS)}
    assert ends == {"."}


def chosen(question, max_chars=1_500):
    return [TOWNS[each.start : each.end] for each in choose([TOWNS], question, max_chars)]


def test_it_finds_the_passage_that_holds_the_words():
    assert any("founded in 1073." in text for text in chosen("When was number 73 founded?"))


def test_it_keeps_to_the_budget_and_to_the_order_of_reading():
    found = choose([TOWNS, TOWNS], "church market", 3_000)
    assert len(found) > 1 and sum(each.end - each.start for each in found) <= 3_000
    assert found == sorted(found, key=lambda each: (each.document, each.start))


def test_it_takes_the_beginning_where_no_word_occurs():
    assert chosen("???")[0].startswith("Town number 0 ") and chosen("zebra")[0].startswith("Town number 0 ")


def test_words_that_are_operators_of_the_index_are_only_words():
    assert choose(["Cats AND dogs"], 'NEAR( "AND" OR * col:', 1_000)


def test_with_little_room_the_passages_are_cut_smaller():
    text = "It has a church. " * 30 + "The mill of Ekby was built in 1887. " + "It has a church. " * 30
    (passage,) = choose([text], "When was the mill built?", 100)
    assert passage.end - passage.start <= 100 and "mill of Ekby" in text[passage.start : passage.end]
