"""/v1 with prompt templates, through the official client: rendered here, logged by version."""

from __future__ import annotations

import pytest
from openai import BadRequestError, OpenAI

from tests.server import Server

MAKE = """
from localllm.gateway.models import PromptTemplate
made = (("greet", "message", "Say hello to {{ name }}."), ("terse", "chat", "Be terse. {{ date }}"))
for name, use_case, text in made:
    template = PromptTemplate.objects.create(name=name, use_case=use_case)
    template.make_current(template.add_version(text))
"""
LAST = """
from localllm.gateway.models import UsageLog
row = UsageLog.objects.select_related("template_version__template").first()
print(row.template_version, row.template_variables, *row.dialogue, sep="\\n")
"""


@pytest.fixture(scope="module", autouse=True)
def templates(server: Server) -> None:
    done = server.manage("shell", "-v0", "-c", MAKE)
    assert done.returncode == 0, done.stderr


def ask(api: OpenAI, template: str, *messages: str, role: str = "user", **variables: str) -> str:
    answer = api.chat.completions.create(
        model="default",
        messages=[{"role": role, "content": text} for text in messages],  # type: ignore[misc]
        max_tokens=5,
        extra_body={"localllm": {"template": template, "variables": variables}},
    )
    return answer.choices[0].message.content or ""


def logged(server: Server) -> str:
    return server.manage("shell", "-v0", "-c", LAST).stdout


def test_a_template_makes_the_last_message(server: Server, api: OpenAI) -> None:
    assert ask(api, "greet", name="{{ name }}")
    assert "greet v1" in logged(server) and "Message(role='user', content='Say hello to {{ name }}.')" in logged(server)


def test_a_template_for_chats_makes_the_system_message(server: Server, api: OpenAI) -> None:
    assert ask(api, "terse", "Who are you?", date="Monday")
    assert "Message(role='system', content='Be terse. Monday')" in logged(server)


@pytest.mark.parametrize(
    ("template", "role", "variables", "param", "why"),
    [
        ("nothing", "user", {}, "localllm.template", "no prompt template named “nothing”"),
        ("greet", "user", {}, "localllm.variables", "No value was given for “name”"),
        ("terse", "system", {}, "localllm.template", "messages has one"),
    ],
)
def test_it_says_what_is_wrong_with_a_template(
    api: OpenAI, template: str, role: str, variables: dict[str, str], param: str, why: str
) -> None:
    with pytest.raises(BadRequestError, match=why) as caught:
        ask(api, template, "Hello", role=role, **variables)
    assert caught.value.param == param
