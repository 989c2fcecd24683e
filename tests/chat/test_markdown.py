"""Markdown of a model becomes safe HTML, piece by piece as it is written."""

import random
import re

import pytest

from chat.markdown import MAX_BLOCK_CHARS, num_closed, render

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<math><mtext></mtext><mglyph><style><img src=x onerror=alert(1)></style></mglyph></math>",
    "<math><annotation-xml encoding='text/html'><img src=x onerror=alert(1)></annotation-xml></math>",
    "<math href='javascript:alert(1)'>x</math>",
    "<iframe src='javascript:alert(1)'></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<object data='javascript:alert(1)'></object>",
    "<embed src='javascript:alert(1)'>",
    "<style>*{background:url(http://evil.example)}</style>",
    "<p style='position:fixed;inset:0'>x</p>",
    "<link rel=stylesheet href=http://evil.example>",
    "<base href='http://evil.example/'>",
    "<meta http-equiv=refresh content='0;url=javascript:alert(1)'>",
    "<form action=http://evil.example><input name=a></form>",
    "<input autofocus onfocus=alert(1)>",
    "<details open ontoggle=alert(1)>",
    "<video><source onerror=alert(1)></video>",
    "<body onload=alert(1)>",
    "<a href='javascript:alert(1)'>x</a>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<template><script>alert(1)</script></template>",
    "<!--><script>alert(1)</script>-->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<?xml version='1.0'?><script>alert(1)</script>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<button data-action='stop' onclick=alert(1)>x</button>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](  javascript:alert(1))",
    "[x](java\nscript:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](\x01javascript:alert(1))",
    "[x](javascript&colon;alert(1))",
    "[x](javascript&#58;alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](&#x6A;avascript:alert(1))",
    "[x](java&Tab;script:alert(1))",
    "[x](java&NewLine;script:alert(1))",
    "[x](javascript%3Aalert(1))",
    "[x](\\javascript:alert(1))",
    "[x](ｊavascript:alert(1))",
    "[x](vbscript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[x](data:image/svg+xml,<svg onload=alert(1)>)",
    "[x](file:///etc/passwd)",
    "[x](blob:http://evil.example/1)",
    "[x](/logout/)",
    "[x](//evil.example)",
    '[x](http://e.com/"onmouseover=alert(1))',
    "[x](http://e.com 'a\" onmouseover=\"alert(1)')",
    "[x](<javascript:alert(1)>)",
    "[x][1]\n\n[1]: javascript:alert(1)",
    "[x][1]\n\n[1]: data:text/html,<script>alert(1)</script>",
    "[x]\n\n[x]: <java\nscript:alert(1)>",
    "<javascript:alert(1)>",
    "<data:text/html,alert(1)>",
    "![x](javascript:alert(1))",
    "![x](data:image/svg+xml,<svg onload=alert(1)>)",
    "![<script>alert(1)</script>](http://e.com/x.png)",
    '![x" onerror="alert(1)](http://e.com/x.png)',
    "![x](http://e.com/x.png \"a' onerror='alert(1)\")",
    "[![x](http://e.com/x.png)](javascript:alert(1))",
    "[![x](javascript:alert(1))](http://e.com)",
    "`<script>alert(1)</script>`",
    "```\n</code></pre><script>alert(1)</script>\n```",
    "```html\n<script>alert(1)</script>\n```",
    '```"><script>alert(1)</script>\nx\n```',
    "```python onload=alert(1)\nx\n```",
    "    <script>alert(1)</script>",
    "|a|\n|-|\n|<img src=x onerror=alert(1)>|",
    "|a|\n|:-:|\n|[x](javascript:alert(1))|",
    "$\\href{javascript:alert(1)}{x}$",
    "$\\url{javascript:alert(1)}$",
    "$\\style{position:fixed}{x}$",
    '$\\class{x" onload="alert(1)}{x}$',
    "$\\text{<script>alert(1)</script>}$",
    "$\\mathrm{<img src=x onerror=alert(1)>}$",
    "$\\color{red;background:url(http://evil.example)}{x}$",
    "$\\includegraphics{http://evil.example/x.png}$",
    "$<img src=x onerror=alert(1)>$",
    "$$\n</math><script>alert(1)</script>\n$$",
    "$\\undefined{<svg onload=alert(1)>$",
    "> - 1. <script>alert(1)</script>",
    "# <img src=x onerror=alert(1)>",
    "**<script>**alert(1)**</script>**",
    "~~<svg onload=alert(1)>~~",
]
ALLOWED_ATTRIBUTE = re.compile(
    r"(class|title|href|target|rel|type|tabindex|start|display|xmlns|mathvariant|stretchy|fence|form|accent|columnalign"
    r"|lspace|rspace|minsize|maxsize|width|separator|linethickness|displaystyle|scriptlevel|movablelimits)"
)


def attributes(html):
    for tag in re.findall(r"<[a-z][^>]*>", html):
        yield from re.findall(r"""\s([\w:-]+)\s*=\s*"([^"]*)\"""", tag)


@pytest.mark.parametrize("text", [*HOSTILE, *(f"- > **{text}**" for text in HOSTILE if "\n" not in text)])
def test_it_lets_nothing_through_that_acts(text):
    html = render(text)
    assert not re.search(r"<(script|img|svg|iframe|style|object|embed|link|base|meta|form|input|video)\b", html)
    for name, value in attributes(html):
        assert ALLOWED_ATTRIBUTE.fullmatch(name), (name, html)
        assert name != "href" or re.match(r"https?://|mailto:", value), html


def test_it_renders_a_table_with_alignment_and_no_style_attribute():
    html = render("|a|b|\n|:-|-:|\n|1|2|")
    assert '<th class="align-left">a</th>' in html
    assert '<td class="align-right">2</td>' in html
    assert "style=" not in html


def test_it_highlights_code_and_names_its_language():
    html = render("```python\nreturn 1\n```")
    assert "<span>python</span>" in html
    assert '<span class="k">return</span>' in html
    assert 'class="copy-code"' in html


def test_it_shows_code_of_an_unknown_language_as_it_is():
    assert '<code class="hl">a &lt; b\n</code>' in render("```klingon\na < b\n```")


def test_it_turns_latex_into_mathml():
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in render("$x^2$")
    assert 'display="block"' in render("$$\nx\n$$")


@pytest.mark.parametrize("source", ["\\frac{", "\\begin{x", "\\left(", "{" * 500, "\\" * 9 + "x"])
def test_it_shows_the_source_of_a_formula_it_cannot_read(source):
    html = render(f"${source}$")
    assert source[:5] in html or "<math" in html


def test_it_takes_money_for_money():
    assert render("It costs $5 and then $6.") == "<p>It costs $5 and then $6.</p>\n"


def test_it_links_to_an_image_and_names_its_host_instead_of_loading_it():
    html = render("![a cat](https://cats.example/1.png)")
    assert 'href="https://cats.example/1.png"' in html
    assert ">a cat (image on cats.example)</a>" in html


def test_it_opens_links_elsewhere_and_tells_the_target_nothing():
    assert 'target="_blank" rel="noopener noreferrer nofollow"' in render("[x](https://e.com)")


def test_it_shows_a_block_of_endless_length_as_plain_text():
    html = render("word " * (MAX_BLOCK_CHARS // 4))
    assert html.startswith("<pre")


def test_it_still_renders_the_blocks_around_one_that_is_too_long():
    html = render("# Title\n\n" + "word " * (MAX_BLOCK_CHARS // 4) + "\n\n**end**")
    assert "<h1>Title</h1>" in html
    assert "<strong>end</strong>" in html


@pytest.mark.parametrize("unit", ["[", "![", "**", "_a", "`a``", "$a ", "<a ", "[a](b", "> ", "- ", "|a", "\\", "&a"])
def test_it_keeps_the_text_of_input_made_to_hang_it(unit):
    text = unit * (20_000 // len(unit))
    assert len(render(text)) > 0


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        ("", ""),
        ("one line", ""),
        ("one line\n", ""),
        ("one\n\ntwo", ""),
        ("one\n\ntwo\n", "one\n\n"),
        ("# Title\ntext\n", "# Title\n"),
        ("a\n\n```\ncode\n\nmore\n", "a\n\n"),
        ("a\n\n$$\nx\n\ny\n", "a\n\n"),
        ("- a\n- b\n\n  still b\n", ""),
        ("- a\n\nparagraph\n", "- a\n\n"),
        ("😀\n\nb\n", "😀\n\n"),
    ],
)
def test_it_counts_what_no_further_text_can_change(text, closed):
    assert num_closed(text) == len(closed)


ATOMS = [
    *("a", "x $y$", " ", "\t", "\n", "\n\n", "\r\n", "    code", "  c", "```", "~~~", "$$", "$$\n", "===", "---"),
    *("- x", "* * *", "1. y", "2. z", "> q", "#", "# h", "| a | b |", "|-|-|"),
]


@pytest.mark.parametrize("seed", range(60))
def test_it_renders_piece_by_piece_what_it_renders_at_once(seed):
    rng = random.Random(seed)
    text = "".join(rng.choice(ATOMS) + rng.choice(["", "\n"]) for _ in range(14))
    html, at, before = "", 0, 0
    for end in range(len(text) + 1):
        closed = num_closed(text[:end])
        assert closed >= before
        before = closed
        if length := num_closed(text[at:end]):
            html += render(text[at : at + length])
            at += length
    assert html + render(text[at:]) == render(text)
