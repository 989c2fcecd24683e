"""What repositories of the hub offer, remembered for a while: looking again and sliding a slider cost no network."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Generic, TypeVar

from localllm.gateway.downloads import hub
from localllm.inference.engine.gguf import Header, fetch_header
from localllm.inference.hub.files import HubFile, Repository

T = TypeVar("T")

LISTING_S = 300.0  # a repository may change
MAX_LISTINGS = 64
MAX_HEADERS = 64  # of about 100 kB


class _Recent(Generic[T]):
    """The latest values by key; what is too old or too much is forgotten."""

    def __init__(self, max_number: int, max_age_s: float = float("inf")) -> None:
        self._max_number = max_number
        self._max_age_s = max_age_s
        self._values: OrderedDict[str, tuple[float, T]] = OrderedDict()

    def get(self, key: str) -> T | None:
        since, value = self._values.get(key, (0.0, None))
        return value if time.monotonic() - since <= self._max_age_s else None

    def put(self, key: str, value: T) -> T:
        self._values[key] = time.monotonic(), value
        self._values.move_to_end(key)
        while len(self._values) > self._max_number:
            self._values.popitem(last=False)
        return value


_listings: _Recent[Repository] = _Recent(MAX_LISTINGS, LISTING_S)
_headers: _Recent[Header] = _Recent(MAX_HEADERS)


def known(name: str) -> Repository | None:
    """What the hub said lately. Asks nobody."""
    return _listings.get(_key(name))


async def repository(name: str) -> Repository:
    """What the hub offers under this name. Raises HubError."""
    return known(name) or _listings.put(_key(name), await hub().repository(name))


async def header(file: HubFile) -> Header:
    """What a file says of itself; a few MB of it are read, once. Raises HubError and ModelRefused."""
    client = hub()

    async def read(part: int, start: int, length: int) -> bytes:
        return await client.read_range(file, start, length, part=part)

    sizes = [part.size_bytes for part in file.parts]
    found = _headers.get(file.sha256)
    return found or _headers.put(file.sha256, await fetch_header(read, sizes=sizes, name=file.label))


def _key(name: str) -> str:
    return f"{hub().endpoint}/{name}"
