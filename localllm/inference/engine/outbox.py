"""What a worker has to tell, on its way to the web process. No socket, no threads.

Each message wakes the web process, on one of the very CPUs that decode. So tokens of an answer that is under
way wait for those of the next short steps, and go with them as one piece; nothing else waits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from localllm.inference.engine import wire
from localllm.inference.types import Chunk, Finished

PATIENCE_S = 0.04  # of a token, by the length of the last step: nobody sees that in a text

Message = wire.Told | wire.Failed | wire.Embedded


class Outbox:
    """`send` takes the frames of several messages at once. All is called by the thread that computes."""

    def __init__(self, send: Callable[[bytes], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._messages: list[Message] = []
        self._begun: set[int] = set()  # requests of whose answer something was told
        self._pieces: dict[int, int] = {}  # request: where among the messages is the piece that may still grow
        self._is_urgent = False
        self._since = 0.0  # when the first of the messages came

    def put(self, message: Message) -> None:
        if not self._messages:
            self._since = self._clock()
        match message:
            case wire.Told(id=id, event=Chunk() as chunk):
                if self._put_piece(id, chunk):
                    return
                self._begun.add(id)
            case wire.Told(id=id, event=Finished()) | wire.Failed(id=id):
                self._begun.discard(id)
        self._pieces.pop(message.id, None)  # what comes after this message is not to go before it
        self._is_urgent = True
        self._messages.append(message)

    def _put_piece(self, id: int, chunk: Chunk) -> bool:
        """Whether it could be put where it may wait: the first piece of an answer may not."""
        if id not in self._begun:
            return False
        at = self._pieces.get(id)
        if at is None:
            self._pieces[id] = len(self._messages)
            self._messages.append(wire.Told(id, chunk))
        else:
            before = self._messages[at]
            assert isinstance(before, wire.Told) and isinstance(before.event, Chunk)
            self._messages[at] = wire.Told(id, before.event + chunk)
        return True

    def flush(self, step_s: float = math.inf) -> None:
        """Send what is there, unless all of it may wait for the end of a step that takes `step_s` seconds."""
        if not self._messages:
            return
        if not self._is_urgent and self._clock() + step_s - self._since <= PATIENCE_S:
            return
        frames = b"".join(map(wire.frame, self._messages))
        self._messages.clear()
        self._pieces.clear()
        self._is_urgent = False
        self._send(frames)
