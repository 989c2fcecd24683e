"""Templates: variables without logic, put in once, and errors that say where."""

import pytest

from localllm.inference.prompt_template import MAX_TEMPLATE_BYTES, Template, TemplateError, replaced
from localllm.inference.types import Message


def test_it_puts_values_in_the_place_of_variables():
    template = Template("{{ greeting }}, {{name}}! {{ greeting }} again.")
    assert template.variables == ("greeting", "name")
    assert template.render({"greeting": "Hello", "name": "Ada"}) == "Hello, Ada! Hello again."


def test_it_never_reads_a_value_as_a_template():
    values = {"a": "{{ b }}", "b": "{{ a }} {{ secret }} {% for x in y %}"}
    assert Template("{{ a }} {{ b }}").render(values) == "{{ b }} {{ a }} {{ secret }} {% for x in y %}"


def test_it_names_the_variables_without_a_value():
    with pytest.raises(TemplateError, match="No value was given for “passages”, “question”"):
        Template("{{ passages }} {{ question }}").render({"text": "…"})


@pytest.mark.parametrize(
    "text", ["{{ name", "{{ }}", "{{ a.b }}", "{{ a | upper }}", "{{ {{ a }} }}", "{{ a\n}}", "{{"]
)
def test_it_says_where_braces_are_no_variable(text):
    with pytest.raises(TemplateError, match=r"in line 2, column 6 is no variable. Expected a name"):
        Template(f"First\nHere {text}")


def test_it_leaves_json_and_lone_braces_alone():
    text = '{"a": {"b": {}}} { x } }} {% if y %}'
    assert Template(text).render({}) == text


def test_it_refuses_a_template_of_a_megabyte():
    with pytest.raises(TemplateError, match="1,000,000 bytes; at most 100,000"):
        Template("x" * 1_000_000)


def test_it_refuses_to_blow_a_short_template_up():
    with pytest.raises(TemplateError, match="longer than 4,000,000 characters"):
        Template("{{ a }}" * (MAX_TEMPLATE_BYTES // 7)).render({"a": "x" * 1000})


def test_it_knows_which_variables_nobody_would_fill():
    with pytest.raises(TemplateError, match=r"Nothing is known of “user” here. It may use “question”"):
        Template("{{ question }} {{ user }}").check(["question"])


def test_another_prompt_takes_the_place_of_the_one_that_was_asked():
    asked = (Message("system", "Be brief.\n\nAs JSON."), Message("user", "Be brief."))
    assert replaced(asked, "Be brief.", "Be kind.") == (Message("system", "Be kind.\n\nAs JSON."), asked[1])
    assert replaced(asked[1:], "", "Be kind.") == (Message("system", "Be kind."), asked[1])
    assert replaced(asked[1:], "Be brief.", "") == ()
    with pytest.raises(TemplateError, match="does not hold the prompt"):
        replaced(asked, "Be rude.", "Be kind.")
