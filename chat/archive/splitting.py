"""Conversations out of an export file of any size, one after the other, in memory for one.

Takes a JSON array of objects, an object with such an array as `conversations`, or objects one after the other.
Knows only where objects begin and end; what is in them is for others to say.
"""

from __future__ import annotations

import re
import zipfile
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from localllm.inference.errors import InferenceError

MAX_ITEM = 64 << 20  # bytes of one conversation
MAX_UNPACKED = 8 << 30  # of a ZIP file's parts together
CHUNK = 1 << 20
BEGINNING = 1 << 10  # bytes in which JSON or a ZIP file shows itself
STRUCTURE = re.compile(rb'["\\\[\]{}]')
LIST = re.compile(rb'"conversations"\s*:\s*\Z')
LIST_BEFORE = 100  # bytes before an array in which its name is looked for
PARTS = re.compile(r"(?:.*/)?conversations[^/]*\.jsonl?", re.IGNORECASE)


class ArchiveRefused(InferenceError):
    """The file is no export that could be read."""


@dataclass(frozen=True, slots=True)
class Item:
    """One object; `data` is None where it is too large. `end` is the offset behind it."""

    data: bytes | None
    end: int


@dataclass(frozen=True, slots=True)
class CutOff:
    """The file ended in the middle of an object or a list, at this offset."""

    end: int


def read(path: Path) -> Iterator[Item | CutOff]:
    """Offsets are of the file as it lies here; of a ZIP file, about. Raises ArchiveRefused."""
    with path.open("rb") as file:
        beginning = file.read(BEGINNING).removeprefix(BOM_UTF8).lstrip()
        if beginning.startswith(b"PK\x03\x04"):
            yield from _unzipped(path)
        elif beginning.startswith((b"{", b"[")):
            file.seek(0)
            yield from split(_chunks(file))
        else:
            raise ArchiveRefused("The file is neither JSON nor a ZIP file. Choose the export file as you got it.")


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(CHUNK), b"")


def _unzipped(path: Path) -> Iterator[Item | CutOff]:
    try:
        with zipfile.ZipFile(path) as archive:
            parts = sorted((each for each in archive.infolist() if PARTS.fullmatch(each.filename)), key=_name)
            if not parts:
                raise ArchiveRefused("The ZIP file holds no conversations.json. Choose the export file as you got it.")
            if sum(part.file_size for part in parts) > MAX_UNPACKED:
                raise ArchiveRefused("The ZIP file unpacks to more than 8 GB, which no export of chats does.")
            for part in parts:
                with archive.open(part) as file:
                    for item in split(_chunks(file)):
                        yield item if isinstance(item, CutOff) else Item(item.data, part.header_offset)
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as exc:
        raise ArchiveRefused(
            f"The ZIP file is damaged or cut off ({exc}). Get it again; what was read until there is imported."
        ) from exc


def _name(part: zipfile.ZipInfo) -> str:
    return part.filename


def split(chunks: Iterable[bytes], max_item: int = MAX_ITEM) -> Iterator[Item | CutOff]:
    """The objects of a stream of bytes. The last item is CutOff where the stream ends within one."""
    return _Splitter(max_item).split(chunks)


class _Splitter:
    def __init__(self, max_item: int) -> None:
        self._max_item = max_item
        self._depth = 0
        self._level = 0  # the depth at which the conversations stand
        self._in_string = False
        self._escaped = -1  # offset of a byte that means nothing by itself
        self._item = bytearray()
        self._is_open = self._is_too_large = False

    def split(self, chunks: Iterable[bytes]) -> Iterator[Item | CutOff]:
        base = 0
        for chunk in chunks:
            yield from self._read(chunk, base)
            base += len(chunk)
        if self._depth:
            yield CutOff(base)

    def _read(self, chunk: bytes, base: int) -> Iterator[Item]:
        start = 0  # of what is not in the item yet
        for match in STRUCTURE.finditer(chunk):
            at = match.start()
            if base + at == self._escaped:
                continue
            match chunk[at : at + 1]:
                case b"\\":
                    self._escaped = base + at + 1
                case b'"':
                    self._in_string = not self._in_string
                case _ if self._in_string:
                    pass
                case b"{" | b"[" as opening:
                    if self._depth == self._level and opening == b"{":
                        start, self._is_open = at, True
                    elif opening == b"[" and not self._level and self._begins_list(chunk, start, at):
                        self._level = self._depth + 1
                        self._drop()
                    self._depth += 1
                case _:
                    self._depth = max(0, self._depth - 1)
                    if self._is_open and self._depth == self._level:
                        self._add(chunk[start : at + 1])
                        yield Item(None if self._is_too_large else bytes(self._item), base + at + 1)
                        self._drop()
        if self._is_open:
            self._add(chunk[start:])

    def _begins_list(self, chunk: bytes, start: int, at: int) -> bool:
        """Whether this array holds the conversations: it stands at the top, or in an object under that name."""
        before = bytes(self._item[-LIST_BEFORE:]) + chunk[max(start, at - LIST_BEFORE) : at]
        return self._depth == 0 or (self._depth == 1 and LIST.search(before) is not None)

    def _add(self, data: bytes) -> None:
        if len(self._item) + len(data) > self._max_item:
            self._is_too_large = True
            self._item.clear()
        if not self._is_too_large:
            self._item += data

    def _drop(self) -> None:
        self._item.clear()
        self._is_open = self._is_too_large = False
