"""JSON becomes HTML that people read, however far it is written, and nothing in it acts."""

import json
import re

import pytest

from localllm.gateway.data_view import MAX_ITEMS, MAX_VALUES, label, render, vouched
from localllm.inference.structured import FieldReport

INVOICE = {
    "invoice_no": "A-17",
    "isPaid": True,
    "total": 12.5,
    "due": None,
    "tags": ["new", "hot"],
    "items": [{"what": "Ink", "price": 5}, {"what": "Paper"}],
}


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_it_shows_labels_lists_and_tables():
    html = render(json.dumps(INVOICE))
    assert text_of(html) == (
        "Invoice no A-17 Is paid yes Total 12.5 Due none Tags new hot Items What Price Ink 5 Paper"
    )
    assert html.count("<table>") == html.count("<ul>") == html.count("<dl>") == 1


def test_every_value_says_where_it_stands():
    paths = re.findall(r'data-path="([^"]*)"', render('{"a/b": [1, {"c": [2]}], "d": [{"e": 3}]}'))
    assert paths == ["/a~1b/0", "/a~1b/1/c/0", "/d/0/e"]


@pytest.mark.parametrize("end", range(len(json.dumps(INVOICE))))
def test_it_shows_what_is_written_so_far(end):
    html = render(json.dumps(INVOICE)[:end])
    assert html.startswith('<div class="data-view">') and html.endswith("</div>")
    assert "<pre>" not in html and "empty" not in html


def test_half_of_a_character_can_be_sent():
    render(r'{"smile": "\ud83d').encode()


@pytest.mark.parametrize(
    "hostile", ['<img src=x onerror="a()">', '"><script>a()</script>', "https://evil.example/?q='"]
)
def test_nothing_in_it_acts(hostile):
    for text in (hostile, json.dumps(hostile), json.dumps({hostile: [{hostile: hostile}, [hostile]]})):
        html = render(text)
        assert not re.search(r"<(?!/?(?:div|dl|dt|dd|ul|li|span|pre|table|thead|tbody|tr|th|td)\b)", html)
        assert html.count("<") == html.count(">") and "<a " not in html


def test_prose_is_shown_as_it_is():
    assert render("Sorry, no.") == '<div class="data-view"><pre>Sorry, no.</pre></div>'


def test_a_huge_array_is_cut_with_a_count():
    html = render(json.dumps(list(range(MAX_ITEMS + 1234))))
    assert html.count("<li>") == MAX_ITEMS and "and 1,234 more" in html


def test_the_whole_document_is_bounded():
    assert render(json.dumps([[[0] * 100] * 100] * 100)).count("<li>") <= MAX_VALUES
    assert len(render("[" * 150)) < 10_000


def test_it_names_values_to_check_and_where_the_input_says_them():
    reports = {"/name": FieldReport(0.52, (3, 6)), "/age": FieldReport(0.98, None)}
    name, age = re.findall(r"<span[^>]*>", render('{"name": "Ada", "age": 36}', reports))
    assert "is-unsure" in name and 'title="check this (52 %)"' in name and 'data-span="3 6"' in name
    assert "is-unsure" not in age and "title" not in age and "data-span" not in age


@pytest.mark.parametrize(
    ("account", "words"),
    [
        ({"guarantee": "constrained"}, "Every field was enforced while it was written, then checked."),
        (
            {"guarantee": "validated", "unenforced": [{"keyword": "not"}, {"keyword": "contains"}, {"keyword": "not"}]},
            "Checked after it was written; only then: contains, not.",
        ),
        ({"guarantee": "repaired", "attempts": 2}, "Valid at attempt 2, then checked."),
        ({"guarantee": "repaired", "attempts": 1}, "Mended after it was written, then checked."),
    ],
)
def test_it_says_in_words_what_vouches_for_a_result(account, words):
    assert vouched(account | {"finish_reason": "stop"}) == words
    assert vouched(account | {"finish_reason": "closed"}).startswith(f"{words} The length limit ended it early")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("overall_score", "Overall score"),
        ("firstName", "First name"),
        ("customerID", "Customer ID"),
        ("HTTPStatus", "HTTP status"),
        ("über-größe", "Über größe"),
        ("What is it?", "What is it?"),
        ("_", "_"),
        ("", "(no name)"),
    ],
)
def test_keys_become_labels(key, expected):
    assert label(key) == expected
