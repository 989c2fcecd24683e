"""The hub over HTTP: what a repository holds, and the bytes of its files. Refusals become sentences here.

huggingface-hub gives addresses and the shape of the answers; the requests go through our own client,
which can be closed at any time, connects to judged addresses only, and gives up on a server that says nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from functools import cache
from ssl import SSLContext
from urllib.parse import quote

import httpx2
from huggingface_hub import ModelInfo, hf_hub_url
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from localllm.inference.errors import HubError
from localllm.inference.hub.files import HubFile, Part, Repository, repository
from localllm.inference.outgoing import AddressRefused, PublicTransport, is_public, look_up

ENDPOINT = "https://huggingface.co"
CONNECT_S = 10.0
MAX_REDIRECTS = 5
MAX_LISTING = 32 << 20


class Hub:
    """One hub as the settings describe it. `silence_s`: how long it may say nothing before it is given up."""

    def __init__(
        self, *, endpoint: str = ENDPOINT, token: str = "", is_offline: bool = False, silence_s: float = 30.0
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.is_offline = is_offline
        self.silence_s = silence_s
        # Not by huggingface-hub: to make headers it asks the hub for a list of programs that it might run under.
        self._headers = {"User-Agent": "LocalLLM"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._has_token = bool(token)

    async def repository(self, repo: str, revision: str = "main") -> Repository:
        """What it offers, pinned to the commit that `revision` is now. Raises HubError."""
        if not _is_name(repo):
            raise HubError(f"“{repo}” is no name of a repository: write it as owner/name.", permanent=True)
        url = f"{self.endpoint}/api/models/{repo}/revision/{quote(revision, safe='')}"
        async with self._get(repo, f"{url}?blobs=true", f"repository {repo} at {revision}") as response:
            return repository(repo, await _listing(response, repo))

    async def find_file(self, repo: str, name: str, revision: str = "main") -> HubFile:
        return (await self.repository(repo, revision)).file(name)

    async def read_range(self, file: HubFile, start: int, length: int, *, part: int = 0) -> bytes:
        """`length` bytes of one part from `start` on; fewer where it ends. Reads no more than that."""
        end = min(start + length, file.parts[part].size_bytes)
        if start >= end:
            return b""
        data = bytearray()
        async with self.open(file, file.parts[part], {"Range": f"bytes={start}-{end - 1}"}) as response:
            if response.status_code != 206:
                raise HubError(f"{self.endpoint} sends files only whole. Try another endpoint.", permanent=True)
            async for piece in response.aiter_raw():
                data += piece
                if len(data) >= end - start:
                    break
        return bytes(data[: end - start])

    @asynccontextmanager
    async def open(self, file: HubFile, part: Part, headers: dict[str, str]) -> AsyncGenerator[httpx2.Response]:
        """The response that carries a part, 200 or 206; its bytes are not read yet."""
        url = hf_hub_url(file.repo, part.path, revision=file.commit, endpoint=self.endpoint)
        what, headers = f"{part.path} of {file.repo}", headers | {"Accept-Encoding": "identity"}
        async with self._get(file.repo, url, what, headers) as response:
            yield response

    @asynccontextmanager
    async def _get(
        self, repo: str, url: str, what: str, headers: dict[str, str] | None = None
    ) -> AsyncGenerator[httpx2.Response]:
        if self.is_offline:
            raise HubError(
                "LOCALLLM_OFFLINE is set, so no connection was opened. Unset it to reach the hub, "
                "or register a file that is already on this machine.",
                permanent=True,
            )
        try:
            async with (
                await self._client() as client,
                client.stream("GET", url, headers=self._headers | (headers or {})) as response,
            ):
                if response.status_code not in (200, 206):
                    raise self._refusal(response, repo, what)
                yield response
        except AddressRefused as exc:
            raise HubError(f"The hub refers to an address that is not used: {exc}", permanent=True) from exc
        except (httpx2.TooManyRedirects, httpx2.InvalidURL, httpx2.UnsupportedProtocol) as exc:
            raise HubError(f"{self.endpoint} leads nowhere: {exc}. Check HF_ENDPOINT.", permanent=True) from exc
        except httpx2.TransportError as exc:
            reason = str(exc).rstrip(".") or type(exc).__name__
            raise HubError(f"The connection for {what} failed: {reason}. Check the network, then try again.") from exc

    async def _client(self) -> httpx2.AsyncClient:
        """A private endpoint is the owner's choice, and so is where it leads; a public one leads to public places.

        A proxy of the environment is used, and then judges addresses in our stead.
        """
        url = httpx2.URL(self.endpoint)
        context = _tls_context()
        return httpx2.AsyncClient(
            mounts=None if await _is_private(url) else {"all://": PublicTransport(context, trusted_hosts=[url.host])},
            verify=context,
            follow_redirects=True,  # httpx2 takes the token off where a redirect leaves the host
            max_redirects=MAX_REDIRECTS,
            timeout=httpx2.Timeout(self.silence_s, connect=CONNECT_S),
        )

    def _refusal(self, response: httpx2.Response, repo: str, what: str) -> HubError:
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        if status in (401, 403) and response.url.netloc != httpx2.URL(self.endpoint).netloc:
            # The hub let us pass: a link to its storage holds for a while only, and every attempt gets a new one.
            return HubError(f"The storage of the hub did not take its link ({status} for {what}). Try again later.")
        if code == "GatedRepo" or status == 403:
            return HubError(
                f"The hub does not give out {what} to everybody ({status}): accept the licence at "
                f"{self.endpoint}/{repo}, and {self._token_advice}.",
                permanent=True,
            )
        if status == 401:
            return HubError(
                f"The hub refuses {what} (401): there is no such repository, or it is private. "
                f"Check the name; for a private one, {self._token_advice}.",
                permanent=True,
            )
        if status in (404, 410):
            return HubError(f"The hub has no {what} ({status}). Check repository, file and revision.", permanent=True)
        if status in (408, 425, 429) or status >= 500:
            return HubError(
                f"The hub is too busy or out of order ({status} for {what}). Try again later.",
                retry_after_s=_retry_after_s(response.headers.get("Retry-After", "")),
            )
        return HubError(f"The hub answered {status} for {what}, not with the file. Check HF_ENDPOINT.", permanent=True)

    @property
    def _token_advice(self) -> str:
        return (
            "check that HF_TOKEN is a valid token of that account"
            if self._has_token
            else "set HF_TOKEN to a token of your account"
        )


def _is_name(repo: str) -> bool:
    """As huggingface-hub has it, but with an owner: without one the hub would say that nothing is there, or 401."""
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return False
    return "/" in repo


@cache
def _tls_context() -> SSLContext:
    """Made once: to read all root certificates takes 20 ms."""
    return httpx2.create_ssl_context()


async def _is_private(url: httpx2.URL) -> bool:
    try:
        return not all(map(is_public, await look_up(url)))
    except httpx2.ConnectError:
        return False  # a proxy may know it


async def _listing(response: httpx2.Response, repo: str) -> ModelInfo:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MAX_LISTING:
            raise HubError(f"The list of files of {repo} is longer than {MAX_LISTING >> 20} MiB.", permanent=True)
    try:
        return ModelInfo(**json.loads(body))  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise HubError(
            f"{response.url.host} did not answer with a list of files. Check HF_ENDPOINT.", permanent=True
        ) from exc


def _retry_after_s(header: str) -> float:
    """Seconds from a number or a date; 0 where it says neither."""
    if header.isascii() and header.isdigit():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
