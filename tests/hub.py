"""A server that behaves like the Hugging Face hub: an API, and a storage on another port where files really lie.

It serves real sockets. Its faults are attributes: set them, and what comes next is late, cut, wrong or refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote

from localllm.inference.hub.client import Hub

REPO = "someone/model-GGUF"
FIRST_COMMIT = "1" * 40
TOKEN = "hf_secret"
CHUNK_BYTES = 64 << 10
API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>[^/?]+)")
RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<commit>[^/]+)/(?P<path>.+)")


@dataclass(frozen=True)
class Request:
    place: str  # "hub" or "storage"
    path: str
    headers: dict[str, str]  # names in lower case
    status: int


@dataclass
class HubServer:
    """`files` are those of its one repository, by path. Each fault holds until it is unset."""

    files: dict[str, bytes] = field(default_factory=dict)
    repo: str = REPO  # empty: any
    card: dict[str, Any] = field(default_factory=dict)  # what the model card says of licence and such
    commit: str = FIRST_COMMIT
    is_gated: bool = False  # only who sends TOKEN gets a file
    promised: dict[str, str] = field(default_factory=dict)  # SHA-256 by path, where it is to be another than the true
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # answered first, one by one
    storage_refusals: list[int] = field(default_factory=list)  # the same of the storage, statuses only
    shift: int = 0  # bytes, between where a range is asked for and where it begins
    drop_after: int | None = None  # bytes of each response, then the connection is cut
    pause_s: float = 0.0  # before every chunk
    chunk_bytes: int = CHUNK_BYTES
    etag: str = ""  # instead of the hash
    ignores_ranges: bool = False
    redirect: str = ""  # where files are said to lie, instead of in the storage
    listing: bytes = b""  # instead of the true one
    claimed_size: int = 0  # of every file, instead of the true one
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> HubServer:
        self._servers = [_Server(self, place) for place in ("hub", "storage")]
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    @property
    def url(self) -> str:
        return self._servers[0].url

    @property
    def storage_url(self) -> str:
        return self._servers[1].url

    def client(self, **settings: Any) -> Hub:
        return Hub(endpoint=self.url, **({"silence_s": 5.0} | settings))

    def downloads(self) -> list[Request]:
        """What was asked of the storage."""
        return [request for request in self.requests if request.place == "storage"]

    def content_of(self, sha256: str) -> bytes:
        return next(content for content in self.files.values() if _sha256(content) == sha256)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer, place: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.place = hub, place
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        hub, path = self.server.hub, unquote(self.path)
        if hub.refusals:
            self._answer(*hub.refusals.pop(0))
        elif self.server.place == "storage" and hub.storage_refusals:
            self._answer(hub.storage_refusals.pop(0))
        elif self.server.place == "storage":
            self._send_file(path.removeprefix("/"))
        elif match := API.match(path):
            self._send_listing(match["repo"], match["revision"])
        elif match := RESOLVE.match(path):
            self._redirect(match["repo"], match["commit"], match["path"])
        else:
            self._answer(404)

    def _send_listing(self, repo: str, revision: str) -> None:
        hub = self.server.hub
        if repo != (hub.repo or repo):
            return self._answer(401, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", hub.commit):
            return self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        siblings: list[dict[str, Any]] = [{"rfilename": path, "lfs": self._lfs(path)} for path in hub.files]
        siblings.append({"rfilename": "README.md", "size": 10})
        info = {"id": repo, "sha": hub.commit, "cardData": hub.card, "siblings": siblings}
        self._answer(200, {"Content-Type": "application/json"}, hub.listing or json.dumps(info).encode())

    def _lfs(self, path: str) -> dict[str, Any]:
        hub, content = self.server.hub, self.server.hub.files[path]
        sha256, size = hub.promised.get(path, _sha256(content)), hub.claimed_size or len(content)
        return {"sha256": sha256, "size": size, "pointerSize": 134}

    def _redirect(self, repo: str, commit: str, path: str) -> None:
        hub = self.server.hub
        if hub.is_gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(403, {"X-Error-Code": "GatedRepo"})
        if repo != (hub.repo or repo) or commit != hub.commit or path not in hub.files:
            return self._answer(404, {"X-Error-Code": "EntryNotFound"})
        digest = _sha256(hub.files[path])
        location = hub.redirect or f"{hub.storage_url}/{digest}"
        self._answer(302, {"Location": location, "X-Linked-Etag": f'"{digest}"', "X-Repo-Commit": commit})

    def _send_file(self, digest: str) -> None:
        hub = self.server.hub
        content, etag = hub.content_of(digest), hub.etag or f'"{digest}"'
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end, status = 0, len(content), 200
        if wanted and not hub.ignores_ranges and self.headers.get("If-Range", etag) == etag:
            start, status = int(wanted[1]) + hub.shift, 206
            end = min(end, int(wanted[2]) + 1) if wanted[2] else end
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self._answer(status, headers, content[start:end])

    def _answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        hub = self.server.hub
        hub.requests.append(
            Request(self.server.place, self.path, {name.lower(): text for name, text in self.headers.items()}, status)
        )
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.place == "storage" and status < 300:
            self._send_with_faults(body)
        else:
            self.wfile.write(body)

    def _send_with_faults(self, body: bytes) -> None:
        hub = self.server.hub
        end = len(body) if hub.drop_after is None else min(hub.drop_after, len(body))
        for start in range(0, end, hub.chunk_bytes):
            time.sleep(hub.pause_s)
            self.wfile.write(body[start : min(start + hub.chunk_bytes, end)])
        self.close_connection = end < len(body)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
