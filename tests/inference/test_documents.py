"""Files of every kind become text, and hostile ones cost a sentence: in the real child process."""

import zlib

import pytest

from localllm.inference.documents import reader
from localllm.inference.errors import DocumentRefused
from tests.inference.documents import docx, paragraph, pdf, zipped

READABLE = {
    "utf-8": ("Grüße 😀".encode(), "a.txt", "Grüße 😀"),
    "utf-8 with a mark": (b"\xef\xbb\xbfHi", "a.md", "Hi"),
    "utf-16 with a mark": ("Grüße".encode("utf-16"), "a.txt", "Grüße"),
    "utf-16 without": ("Plain text, for once.".encode("utf-16-be"), "a.txt", "Plain text, for once."),
    "latin-1": ("Grüße".encode("latin-1"), "a.txt", "Grüße"),
    "windows": ("“Hi”\r\nthere\rnow".encode("cp1252"), "a.txt", "“Hi”\nthere\nnow"),
    "json": (b'{"a": 1}', "a.json", '{"a": 1}'),
    "docx": (docx(paragraph("Hello") + paragraph("Bob &amp; Eve")), "a.docx", "Hello\nBob & Eve\n"),
    "docx under a wrong name": (docx(paragraph("Hello")), "a.txt", "Hello\n"),
    "pdf": (pdf("First page", "Second page"), "a.pdf", "First page\n\nSecond page"),
}


@pytest.mark.parametrize("kind", READABLE)
async def test_it_reads(kind):
    data, name, text = READABLE[kind]
    assert (await reader.read(data, name)).text == text


async def test_it_knows_where_the_pages_of_a_pdf_begin():
    found = await reader.read(pdf("First", "Second", "Third"), "a.pdf")
    assert [found.text[start : start + 5] for start in found.page_starts] == ["First", "Secon", "Third"]


async def test_it_says_which_pages_hold_no_text():
    found = await reader.read(pdf("First", ""), "a.pdf")
    assert found.notes == ("1 of 2 pages hold no text: they may be scanned.",)


async def test_it_leaves_zeros_out_of_a_csv_and_says_so():
    found = await reader.read(b"a,b\n1,\x002\n" + b"3,4\n" * 50, "a.csv")
    assert found.text.startswith("a,b\n1,2\n") and found.notes == ("1 control characters were left out.",)
    assert found.media_type == "text/csv"


async def test_it_reads_the_cells_of_a_table_and_leaves_out_what_was_deleted():
    cell = "<w:tc>{}</w:tc>".format
    row = f"<w:tbl><w:tr>{cell(paragraph('a'))}{cell(paragraph('b'))}</w:tr></w:tbl>"
    gone = "<w:p><w:del><w:r><w:delText>gone</w:delText></w:r></w:del></w:p>"
    assert (await reader.read(docx(row + gone), "a.docx")).text == "a\tb\t\n\n"


def bomb(number: int) -> bytes:
    return zlib.compress(b"BT /F1 1 Tf (" + b"x" * number + b") Tj ET", 9)


ENTITIES = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><x>&b;</x>'
HOSTILE = {
    "empty": (b"", "a.txt", "is empty"),
    "white space": (b" \n\t", "a.txt", "is empty"),
    "too large": (b"x" * (reader.MAX_BYTES + 1), "a.txt", "10.5 MB; 10.5 MB at most"),
    "too much text": (b"word " * 500_000, "a.txt", "more than 2,000,000 characters"),
    "a program named txt": (b"MZ\x90\x00" + bytes(range(256)) * 20, "report.txt", "is a program"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20, "a.txt", "not a text file"),
    "an old Office file": (b"\xd0\xcf\x11\xe0" + bytes(600), "a.docx", "a password"),
    "a zip": (zipped({"a.txt": b"Hi"}), "a.docx", "no Word document"),
    "a zip in a zip": (zipped({"word/a.docx": zipped({"word/document.xml": b"Hi"})}), "a.docx", "no Word document"),
    "a zip bomb": (docx(" " * (200 << 20)), "a.docx", "more than 2,000,000 characters"),
    "entities": (zipped({"word/document.xml": ENTITIES.encode()}), "a.docx", "declares entities"),
    "a docx cut off": (docx(paragraph("Hello"))[:-40], "a.docx", "damaged"),
    "a docx of no XML": (zipped({"word/document.xml": b"Hello"}), "a.docx", "damaged"),
    "a pdf of pictures": (pdf("", ""), "a.pdf", "scanned"),
    "a pdf with a password": (
        pdf(
            "Hi",
            trailer="/Encrypt << /Filter /Standard /V 1 /R 2 /O ("
            + "o" * 32
            + ") /U ("
            + "u" * 32
            + ") /P -1 >> /ID [(a) (a)]",
        ),
        "a.pdf",
        "has a password",
    ),
    "a pdf of nothing": (b"%PDF-1.7\n" + b"\x00" * 1000, "a.pdf", "cannot be read"),
    "a pdf bomb": (pdf(bomb(300 << 20)), "a.pdf", "Limit reached"),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_it_refuses_with_a_sentence(kind):
    data, name, said = HOSTILE[kind]
    with pytest.raises(DocumentRefused, match=said) as refused:
        await reader.read(data, name)
    assert str(refused.value).endswith(".")
