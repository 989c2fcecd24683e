"""The text of a file that nobody trusts: txt, md, csv, json and the like, docx, pdf. Runs in a limited child.

What a file is shows its content; its name only tells kinds of text apart. Nothing is left out without a note.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any
from xml.parsers import expat

import msgspec

from localllm.inference.errors import DocumentRefused

MAX_CHARS = 2_000_000  # of the text
MAX_PAGES = 3_000
MAX_XML = 64 << 20  # bytes of a docx's main part, unpacked
MAX_CONTROLS = 0.02  # a larger share of control characters, and it is no text

MEDIA_TYPES = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".md": "text/markdown",
    ".tsv": "text/tab-separated-values",
}
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
PDF = "application/pdf"
BOMS = (
    (BOM_UTF8, "utf-8-sig"),
    (BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (BOM_UTF32_BE, "utf-32"),
    (BOM_UTF16_LE, "utf-16"),
    (BOM_UTF16_BE, "utf-16"),
)
ENCODINGS = {
    **{"utf-8": "UTF-8", "utf-8-sig": "UTF-8", "cp1252": "Latin-1"},
    **{"utf-16": "UTF-16", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "utf-32": "UTF-32"},
}
PROGRAMS = (b"MZ", b"\x7fELF", b"\xca\xfe\xba\xbe", b"\xcf\xfa\xed\xfe")
OLD_OFFICE = b"\xd0\xcf\x11\xe0"  # also what a docx with a password is wrapped in
CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
SAMPLE = 4096


class Extract(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a file says. `page_starts` are offsets in the text, of every page; empty where there are none."""

    text: str
    media_type: str
    page_starts: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()  # sentences: what could not be taken over


def extract(data: bytes, name: str) -> Extract:
    """Raises DocumentRefused."""
    if not data.strip():
        raise DocumentRefused("The file is empty. Choose one that holds some text.")
    if b"%PDF-" in data[:1024]:
        found = _pdf(data)
    elif data.startswith(b"PK\x03\x04"):
        found = _docx(data)
    else:
        found = _plain(data, name)
    if len(found.text) > MAX_CHARS:
        raise _too_long()
    if not found.text.strip():
        raise DocumentRefused("The file holds no text. Choose one that does.")
    return found


def _too_long() -> DocumentRefused:
    return DocumentRefused(f"The file holds more than {MAX_CHARS:,} characters, which is the most. Divide it.")


def _clean(text: str) -> str:
    """One kind of line end, and nothing that cannot be stored."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")
    return text.encode("utf-8", "replace").decode()


# Text


def _plain(data: bytes, name: str) -> Extract:
    if data.startswith(PROGRAMS):
        raise DocumentRefused("This is a program, whatever its name says. Text, Word and PDF files can be attached.")
    if data.startswith(OLD_OFFICE):
        raise DocumentRefused(
            "This is an Office file of the old kind, or one with a password. Save it as .docx or .pdf without one."
        )
    text, _ = decode(data)
    num_controls = len(CONTROLS.findall(text))
    if num_controls > MAX_CONTROLS * len(text):
        raise DocumentRefused(
            "This is not a text file: it is full of control characters. Save it as text, Word or PDF."
        )
    notes = (f"{num_controls} control characters were left out.",) if num_controls else ()
    suffix = PurePath(name).suffix.lower()
    return Extract(text=_clean(CONTROLS.sub("", text)), media_type=MEDIA_TYPES.get(suffix, "text/plain"), notes=notes)


def decode(data: bytes) -> tuple[str, str]:
    """The text, and how it is encoded: UTF-8, UTF-16 or UTF-32 by its mark or by where its zeros are, else Latin-1."""
    codec = next((codec for mark, codec in BOMS if data.startswith(mark)), None) or _utf16_without_mark(data)
    for each in filter(None, (codec, "utf-8", "cp1252")):  # Latin-1 as Windows has it
        try:
            return data.decode(each), ENCODINGS[each]
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1"), "Latin-1"


def _utf16_without_mark(data: bytes) -> str | None:
    """Of text in Latin letters every second byte is zero; a stray zero in UTF-8 is something else."""
    first, second = data[:SAMPLE:2], data[1:SAMPLE:2]
    if second.count(0) > 0.4 * len(second) > 10 * first.count(0):
        return "utf-16-le"
    if first.count(0) > 0.4 * len(first) > 10 * second.count(0):
        return "utf-16-be"
    return None


# Word


def _docx(data: bytes) -> Extract:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open("word/document.xml") as part:
            text = "".join(_WordText().read(iter(lambda: part.read(1 << 16), b"")))
    except KeyError:
        raise DocumentRefused(
            "This is a ZIP file and no Word document. Unpack it and attach what is in it; save a sheet as CSV."
        ) from None
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError, zlib.error) as exc:
        raise DocumentRefused(f"The Word document is damaged or has a password ({exc}). Save it again.") from None
    except expat.ExpatError as exc:
        raise DocumentRefused(f"The Word document is damaged ({exc}). Save it again.") from None
    return Extract(text=_clean(text), media_type=DOCX)


class _WordText:
    """Paragraphs as lines, cells between tabs. Reads piece by piece, and no more than a document may hold."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._num_chars = self._num_bytes = 0
        self._is_text = False
        self._skipped = 0  # depth within what is not text or is there twice
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters

    def read(self, chunks: Iterator[bytes]) -> list[str]:
        for chunk in chunks:
            self._num_bytes += len(chunk)
            if self._num_bytes > MAX_XML:
                raise _too_long()
            self._parser.Parse(chunk, False)
        self._parser.Parse(b"", True)
        return self._pieces

    def _refuse_doctype(self, *args: Any) -> None:
        """Word never writes one; entities that blow up need one."""
        raise DocumentRefused("The Word document declares entities, which Word never does. Save it again with Word.")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        kind = name.rpartition(" ")[2]
        if self._skipped or kind in ("pPr", "Fallback"):
            self._skipped += 1
        elif kind == "t":
            self._is_text = True
        elif kind in ("br", "cr"):
            self._add("\n")
        elif kind == "tab":
            self._add("\t")

    def _end(self, name: str) -> None:
        kind = name.rpartition(" ")[2]
        if self._skipped:
            self._skipped -= 1
        elif kind == "t":
            self._is_text = False
        elif kind in ("p", "tr"):
            self._add("\n")
        elif kind == "tc":
            if self._pieces and self._pieces[-1] == "\n":
                self._pieces.pop()
            self._add("\t")

    def _characters(self, text: str) -> None:
        if self._is_text and not self._skipped:
            self._add(text)

    def _add(self, text: str) -> None:
        self._num_chars += len(text)
        if self._num_chars > MAX_CHARS:
            raise _too_long()
        self._pieces.append(text)


# PDF


def _pdf(data: bytes) -> Extract:
    from pypdf import PdfReader  # here: only a PDF pays for loading it
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DocumentRefused("The PDF has a password. Save a copy without one, and attach that.")
        pages = [_clean(page) for page in _page_texts(reader)]
    except (DocumentRefused, MemoryError):
        raise
    except (PyPdfError, Exception) as exc:  # pypdf raises whatever a broken file leads it to
        reason = str(exc).strip().rstrip(".") or type(exc).__name__
        raise DocumentRefused(f"The PDF cannot be read ({reason[:200]}). Save or print it as a PDF again.") from None
    num_blank = sum(not page.strip() for page in pages)
    if num_blank == len(pages):
        raise DocumentRefused(
            f"The PDF holds no text on its {len(pages)} pages: most likely they are scanned images. "
            "Run it through text recognition (OCR) first."
        )
    notes = (f"{num_blank} of {len(pages)} pages hold no text: they may be scanned.",) if num_blank else ()
    starts, at = [], 0
    for page in pages:
        starts.append(at)
        at += len(page) + 2
    return Extract(text="\n\n".join(pages), media_type=PDF, page_starts=tuple(starts), notes=notes)


def _page_texts(reader: Any) -> Iterator[str]:
    num_pages = len(reader.pages)
    if num_pages > MAX_PAGES:
        raise DocumentRefused(f"The PDF has {num_pages:,} pages; {MAX_PAGES:,} at most are taken. Divide it.")
    num_chars = 0
    for page in reader.pages:
        text = page.extract_text().strip()
        num_chars += len(text)
        if num_chars > MAX_CHARS:
            raise _too_long()
        yield text
