"""A browser without a window: signs in, opens chats, follows replies with cursors as chat.js does."""

from __future__ import annotations

import asyncio
import http.cookiejar
import json
import re
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


class Browser:
    """One signed-in person at `url`. HTTP is plain urllib, so nothing follows what a browser would not."""

    def __init__(self, url: str, username: str, password: str) -> None:
        self.url = url
        self._cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self._cookies), _NoRedirect)
        self.post("/login/", username=username, password=password)

    def get(self, path: str) -> str:
        with self._opener.open(self.url + path, timeout=30) as response:
            return response.read().decode()

    def open(self, path: str, **fields: str) -> Any:
        """Post a form; returns the response, to be read and closed."""
        if "csrftoken" not in self.cookies:
            self.get("/login/")
        data = urllib.parse.urlencode({**fields, "csrfmiddlewaretoken": self.cookies["csrftoken"]}).encode()
        request = urllib.request.Request(self.url + path, data, {"Origin": self.url})
        return self._opener.open(request, timeout=30)

    def post(self, path: str, **fields: str) -> str:
        """Post a form; returns the address it leads to."""
        try:
            self.open(path, **fields).close()
        except urllib.error.HTTPError as answer:
            if answer.status not in (302, 303):
                raise
            return urllib.parse.urlparse(answer.headers["Location"]).path
        return path

    @property
    def cookies(self) -> dict[str, str]:
        return {cookie.name: cookie.value or "" for cookie in self._cookies}

    def new_chat(self, text: str, cid: str = "") -> str:
        """Ask in a new conversation; returns its id once the server has it."""
        path = self.post("/chat/", text=text, cid=cid or uuid.uuid4().hex)
        found = re.fullmatch(r"/chat/([0-9a-f-]{36})/", path)
        assert found, path
        return found[1]

    async def connect(self, conversation_id: str) -> ClientConnection:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return await connect(
            f"{self.url.replace('http', 'ws', 1)}/ws/chat/{conversation_id}/",
            additional_headers={"Cookie": cookie, "Origin": self.url},
            ping_interval=None,
        )


@dataclass
class Follower:
    """One reply as a tab shows it. `text` is what the user has seen; `to` the cursor."""

    reply_id: str
    text: str = ""
    to: int = 0
    is_done: bool = False
    statuses: list[dict[str, Any]] = field(default_factory=list)
    _html_to: int = 0

    async def follow(self, socket: ClientConnection, until_s: float = 60) -> None:
        """Read until the reply is over, the socket ends, or the time is up."""
        try:
            await socket.send(json.dumps({"type": "resume", "message": self.reply_id}))
            async with asyncio.timeout(until_s):
                while not self.is_done:
                    self._receive(json.loads(await socket.recv()))
        except (ConnectionClosed, TimeoutError):
            pass

    def _receive(self, frame: dict[str, Any]) -> None:
        if frame.get("message") != self.reply_id:
            return
        match frame["type"]:
            case "reset":
                # Closed blocks come as HTML; what they were as text is what was seen before.
                self.text = self.text[: frame["to"] - len(frame["tail"])] + frame["tail"]
                self.to = frame["to"]
            case "text":
                assert frame["at"] == self.to, "A gap or a repetition in the stream."
                self.text += frame["text"]
                self.to = frame["to"]
            case "status":
                self.statuses.append(frame)
            case "done":
                self.is_done = True
