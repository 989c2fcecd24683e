"""Prompt templates: texts with variables in `{{ name }}` form, and nothing else to them.

There is no logic, and a value is put in as it is: template syntax inside a value stays text, so that nobody's
input can ask for another variable. Knows no rows.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cached_property

from localllm.inference.errors import InferenceError
from localllm.inference.types import Message

MAX_TEMPLATE_BYTES = 100_000  # UTF-8, some fifty pages
MAX_RENDERED_CHARS = 4_000_000  # more than any window holds; short values may be put in often

_OPENING = re.compile(r"\{\{")
_VARIABLE = re.compile(r"\{\{[ \t]*([A-Za-z_][A-Za-z0-9_]{0,63})[ \t]*\}\}")
MAX_SHOWN = 40  # characters of a text that an error quotes


class TemplateError(InferenceError):
    """A template that is none, or values that are not those it needs."""


class Template:
    """A parsed text. Raises TemplateError where an opening brace pair is no variable."""

    def __init__(self, text: str) -> None:
        self.text = text
        if (size := len(text.encode())) > MAX_TEMPLATE_BYTES:
            raise TemplateError(
                f"The template has {size:,} bytes; at most {MAX_TEMPLATE_BYTES:,} are taken. "
                "Put long material into a variable."
            )
        for opening in _OPENING.finditer(text):
            if _VARIABLE.match(text, opening.start()) is None:
                raise TemplateError(_no_variable(text, opening.start()))

    @cached_property
    def variables(self) -> tuple[str, ...]:
        """Each once, in the order of their first places."""
        return tuple(dict.fromkeys(_VARIABLE.findall(self.text)))

    def render(self, values: Mapping[str, str]) -> str:
        """The text with the values in it. Values that the text has no place for are left out."""
        if missing := [name for name in self.variables if name not in values]:
            raise TemplateError(f"No value was given for {_named(missing)}. Give one, or take it out of the template.")
        places = _VARIABLE.findall(self.text)
        if len(self.text) + sum(len(values[name]) for name in places) > MAX_RENDERED_CHARS:
            raise TemplateError(
                f"With these values the text gets longer than {MAX_RENDERED_CHARS:,} characters. Shorten them."
            )
        return _VARIABLE.sub(lambda found: values[found[1]], self.text)

    def check(self, known: Collection[str]) -> None:
        """Raise TemplateError for a variable that is not `known`: nobody would give it a value."""
        if unknown := [name for name in self.variables if name not in known]:
            offered = f"It may use {_named(known)}." if known else "It takes no variables."
            raise TemplateError(f"Nothing is known of {_named(unknown)} here. {offered}")


def replaced(messages: tuple[Message, ...], before: str, after: str) -> tuple[Message, ...]:
    """`messages` with `after` in place of the first `before`; an empty prompt is no message.

    Raises TemplateError where `before` is not in them.
    """
    if not before:
        return (Message("system", after), *messages) if after else messages
    for at, message in enumerate(messages):
        if before in message.content:
            content = message.content.replace(before, after, 1)
            return (*messages[:at], *([Message(message.role, content)] if content else []), *messages[at + 1 :])
    raise TemplateError("What was asked does not hold the prompt of its template, so no other can take its place.")


def _no_variable(text: str, at: int) -> str:
    line = text.count("\n", 0, at) + 1
    column = at - text.rfind("\n", 0, at)
    return (
        f"“{text[at : at + MAX_SHOWN].splitlines()[0]}” in line {line}, column {column} is no variable. "
        "Expected a name of letters, digits and _ between two pairs of braces, such as {{ question }}."
    )


def _named(names: Collection[str]) -> str:
    return ", ".join(f"“{name}”" for name in names)
