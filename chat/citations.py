"""Numbers such as [2] in an answer become links to the passages they name. Takes HTML that is sanitised already."""

from __future__ import annotations

import re
from collections.abc import Mapping

from django.utils.html import format_html

from chat.attachments import Passage

TAG = re.compile(r"(<[^>]*>)")
NUMBER = re.compile(r"\[(\d{1,4})\]")
NO_LINKS_IN = ("a", "code", "pre", "math", "button")


def numbers(html: str) -> set[int]:
    """What an answer may cite: every number in brackets."""
    return {int(number) for number in NUMBER.findall(html)}


def link(html: str, passages: Mapping[int, Passage], address: str) -> str:
    """Each link is `address` and the number of its passage."""
    linked, closed_by = [], ""
    for piece in TAG.split(html):
        if piece.startswith("<"):
            closed_by = _closing_tag(piece, closed_by)
        elif not closed_by:
            piece = NUMBER.sub(lambda found: _link(found, passages, address), piece)
        linked.append(piece)
    return "".join(linked)


def _closing_tag(tag: str, closed_by: str) -> str:
    """What ends the stretch without links that `tag` stands in, or that it begins; empty where there is none."""
    if closed_by:
        return "" if tag == closed_by else closed_by
    name = re.split(r"[\s>/]", tag[1:], maxsplit=1)[0]
    return f"</{name}>" if name in NO_LINKS_IN else ""


def _link(found: re.Match[str], passages: Mapping[int, Passage], address: str) -> str:
    passage = passages.get(int(found[1]))
    if passage is None:
        return found[0]
    return format_html(
        '<a class="citation" href="{0}" hx-get="{0}" hx-target="#dialog" title="{1}">{2}</a>',
        f"{address}{passage.number}",
        passage.source,
        found[0],
    )
