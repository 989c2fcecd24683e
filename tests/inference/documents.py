"""Small files of each kind, made by hand, for tests."""

import io
import zipfile
import zlib

WORD = '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>{}</w:body></w:document>'


def docx(body: str, **others: bytes) -> bytes:
    return zipped({"word/document.xml": WORD.format(body).encode(), **others})


def paragraph(text: str) -> str:
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def pdf(*pages: str | bytes, trailer: str = "") -> bytes:
    """One line of text on each page; bytes are a content stream as it is, compressed already."""
    numbers = [4 + 2 * place for place in range(len(pages))]
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: f"<< /Type /Pages /Count {len(pages)} /Kids [{' '.join(f'{n} 0 R' for n in numbers)}] >>".encode(),
        3: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    }
    for number, page in zip(numbers, pages, strict=True):
        stream = zlib.compress(f"BT /F1 12 Tf 50 700 Td ({page}) Tj ET".encode()) if isinstance(page, str) else page
        objects[number] = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents {number + 1} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        ).encode()
        head = f"<< /Length {len(stream)} /Filter /FlateDecode >>\nstream\n".encode()
        objects[number + 1] = head + stream + b"\nendstream"
    return _assembled(objects, trailer)


def _assembled(objects: dict[int, bytes], trailer: str) -> bytes:
    file, offsets = bytearray(b"%PDF-1.4\n"), {}
    for number, body in objects.items():
        offsets[number] = len(file)
        file += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    start, size = len(file), max(objects) + 1
    file += f"xref\n0 {size}\n0000000000 65535 f \n".encode()
    file += b"".join(f"{offsets[number]:010} 00000 n \n".encode() for number in range(1, size))
    file += f"trailer\n<< /Size {size} /Root 1 0 R {trailer} >>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(file)
