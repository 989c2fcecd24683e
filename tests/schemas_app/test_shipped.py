"""The schemas that come with the program."""

from __future__ import annotations

import json

import pytest

from localllm.inference.json_schema.fields import from_schema
from localllm.inference.json_schema.grammar import compile_schema
from localllm.inference.prompt_template import Template
from schemas_app.models import INPUT, Schema
from schemas_app.shipped import Shipped, shipped

SHIPPED = list(shipped())


@pytest.mark.parametrize("each", SHIPPED, ids=lambda each: each.slug)
def test_each_is_enforced_whole_and_can_be_edited_as_rows(each: Shipped) -> None:
    assert compile_schema(each.text).is_exact
    assert from_schema(json.loads(each.text))
    assert Template(each.prompt_template).variables == (INPUT,) and each.description


@pytest.mark.django_db
def test_a_new_database_has_them_for_everybody() -> None:
    rows = Schema.objects.filter(owner=None, is_shared=True)
    assert {row.slug: row.current.text for row in rows} == {each.slug: each.text for each in SHIPPED}


def test_the_score_of_feedback_runs_from_1_to_10() -> None:
    (feedback,) = (each for each in SHIPPED if each.slug == "feedback-analysis")
    score = json.loads(feedback.text)["properties"]["overall_score"]
    assert (score["minimum"], score["maximum"]) == (1, 10)
