"""Markdown of a model, which nobody trusts, to HTML that may stand in a page. Knows nothing of rows.

Two walls: the parser takes no HTML and no images, and the sanitiser lets through only what this renderer
makes. No style attribute ever comes out. The time is bounded: what would take long is shown as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import latex2mathml.converter
import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters.html import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

MAX_BLOCK_CHARS = 64_000  # a longer block is shown as plain text
MAX_HIGHLIGHT_CHARS = 32_000
MAX_FORMULA_CHARS = 2_000
MAX_MARKS = 2_000  # in one paragraph: inline parsing is quadratic in these when they never pair up
MARKS = re.compile(r"[\[\]*_`~$<!&\\]")
LINE = re.compile(r"[^\n]*(?:\n|\Z)")

MATHML = (
    "math mrow mi mn mo ms mtext mspace msub msup msubsup munder mover munderover mfrac msqrt mroot mtable mtr "
    "mtd mpadded mphantom menclose mstyle merror"
)
MATHML_ATTRIBUTES = (
    "display xmlns mathvariant stretchy fence separator form accent accentunder linethickness lspace rspace "
    "minsize maxsize columnalign rowspacing columnspacing width height depth notation movablelimits "
    "displaystyle scriptlevel"
)
HTML = "p br hr h1 h2 h3 h4 h5 h6 em strong s blockquote ul ol li pre code table thead tbody tr th td a div span button"
ATTRIBUTES = {tag: set(MATHML_ATTRIBUTES.split()) for tag in MATHML.split()} | {
    "a": {"href"},
    "div": {"class"},
    "span": {"class"},
    "code": {"class"},
    "th": {"class"},
    "td": {"class"},
    "ol": {"start"},
    "pre": {"tabindex"},
    "button": {"type", "class"},
}
_cleaner = nh3.Cleaner(
    tags={*MATHML.split(), *HTML.split()},
    attributes=ATTRIBUTES,
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={"a": {"target": "_blank"}},
)


def render(text: str) -> str:
    """Safe HTML of `text`."""
    if len(text) <= MAX_BLOCK_CHARS:
        return _render_piece(text)
    return "".join(map(_render_piece, _pieces(text)))


def code(text: str, language: str) -> str:
    """Safe HTML of a piece of code, highlighted, with a button to copy it."""
    return (
        '<div class="code"><div class="code-head">'
        f'<span>{escapeHtml(language or "text")}</span><button type="button" class="copy-code">Copy</button></div>'
        f'<pre tabindex="0"><code class="hl">{_highlight(text, language)}</code></pre></div>\n'
    )


def num_closed(text: str) -> int:
    """How many code points at the beginning of `text` form blocks that no further text can change.

    All before the last top-level block; never less when `text` grows.
    """
    return _last_start(text[: text.rfind("\n") + 1])


@lru_cache(maxsize=64)
def _last_start(text: str) -> int:
    starts = _block_starts(text)
    return starts[-1] if starts else 0


def _block_starts(text: str) -> list[int]:
    """Offsets of the top-level blocks of `text`, which ends with a newline."""
    if not text:
        return []
    lines = [0]
    for line in LINE.finditer(text):
        lines.append(line.end())
    num_lines = text.count("\n")
    # A formula that is still open would be read as paragraphs: close it. Where none is open, this line
    # is a paragraph of its own, or goes on with the last one, and counts for nothing.
    tokens = _blocks.parse(_unix(text) + "$$\n")
    starts = [token.map[0] for token in tokens if token.level == 0 and token.map and token.nesting >= 0]
    return [lines[start] for start in starts if start < num_lines]


def _pieces(text: str) -> list[str]:
    """`text` cut between top-level blocks into pieces as long as may be, or longer where one block is."""
    starts = [0, *_block_starts(text + "\n")[1:], len(text)]
    pieces, at = [], 0
    for start, following in zip(starts[1:], [*starts[2:], len(text)], strict=True):
        if following - at > MAX_BLOCK_CHARS or start == len(text):
            pieces.append(text[at:start])
            at = start
    return [piece for piece in pieces if piece]


def _unix(text: str) -> str:
    """One character for each, so that offsets hold: markdown-it would shorten line ends."""
    return text.replace("\r", " ")


def _render_piece(text: str) -> str:
    if len(text) > MAX_BLOCK_CHARS:
        return _plain(text)
    try:
        return _cleaner.clean(_markdown.render(_unix(text)))
    except (RecursionError, ValueError, IndexError):
        # Both parsers are other people's code on hostile text: the reader gets the text at least.
        return _plain(text)


def _plain(text: str) -> str:
    return f'<pre tabindex="0">{escapeHtml(text)}</pre>'


def _is_absolute(url: str) -> bool:
    return bool(re.match(r"(?:https?://|mailto:)[^\s]", url, re.IGNORECASE))


def _math(source: str, options: dict[str, Any]) -> str:
    if len(source) <= MAX_FORMULA_CHARS:
        try:
            return latex2mathml.converter.convert(source, display="block" if options["display_mode"] else "inline")
        except Exception:
            # It raises whatever its parser runs into; the formula's source is the best answer to all.
            pass
    return f'<code class="math-source">{escapeHtml(source)}</code>'


def _fence(tokens: Sequence[Token], idx: int, env: Any) -> str:
    token = tokens[idx]
    return code(token.content, token.info.split(maxsplit=1)[0][:40] if token.info.strip() else "")


def _highlight(code: str, language: str) -> str:
    if language and len(code) <= MAX_HIGHLIGHT_CHARS:
        try:
            lexer = get_lexer_by_name(language.lower(), stripnl=False, ensurenl=False)
        except ClassNotFound:
            return escapeHtml(code)
        return highlight(code, lexer, _formatter)
    return escapeHtml(code)


def _image(tokens: Sequence[Token], idx: int, env: Any) -> str:
    """Loading it would tell its host who reads: a link instead, or its text where a link is open already."""
    url = str(tokens[idx].attrs.get("src", ""))
    label = escapeHtml(f"{tokens[idx].content or 'image'} (image on {urlsplit(url).netloc})")
    depth = sum(token.nesting for token in tokens[:idx] if token.type.startswith("link_"))
    return label if depth else f'<a href="{escapeHtml(url)}">{label}</a>'


def _cell(renderer: RendererHTML, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
    """Alignment comes as a style attribute; here it is a class."""
    style = str(tokens[idx].attrs.pop("style", ""))
    if style:
        tokens[idx].attrs["class"] = style.replace("text-align:", "align-")
    return renderer.renderToken(tokens, idx, options, env)


def _spare(state: StateCore) -> None:
    """Leave out the inline parsing of paragraphs that would take it too long."""
    for token in state.tokens:
        if token.type == "inline" and len(MARKS.findall(token.content)) > MAX_MARKS:
            token.type = "text"


_formatter = HtmlFormatter(nowrap=True)


def _make_parser() -> MarkdownIt:
    md = MarkdownIt("commonmark", {"html": False, "maxNesting": 20}).enable(["table", "strikethrough"])
    md.disable(["html_block", "html_inline"])
    md.validateLink = _is_absolute  # type: ignore[method-assign]
    md.use(dollarmath_plugin, allow_labels=False, allow_space=False, allow_digits=False, renderer=_math)
    md.core.ruler.before("inline", "spare", _spare)
    md.add_render_rule("fence", lambda self, tokens, idx, options, env: _fence(tokens, idx, env))
    md.add_render_rule("code_block", lambda self, tokens, idx, options, env: _fence(tokens, idx, env))
    md.add_render_rule("image", lambda self, tokens, idx, options, env: _image(tokens, idx, env))
    md.add_render_rule("table_open", lambda self, tokens, idx, options, env: '<div class="table"><table>\n')
    md.add_render_rule("table_close", lambda self, tokens, idx, options, env: "</table></div>\n")
    md.add_render_rule("th_open", _cell)
    md.add_render_rule("td_open", _cell)
    return md


_markdown = _make_parser()
_blocks = _make_parser()
_blocks.core.ruler.enableOnly(["normalize", "block"])
