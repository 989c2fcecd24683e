"""What the web process and a worker say to each other: msgpack structs, each behind its length.

The worker never gets a row, a path beside the model's, or a secret; the web process never gets a
pointer. Ids are the web process's own.
"""

from __future__ import annotations

import struct
from typing import Literal

import msgspec

from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import (
    ConstraintError,
    ConstraintKind,
    ContextOverflow,
    InferenceError,
    ProviderError,
    QueueFull,
)
from localllm.inference.types import ChatRequest, Embedding, Event, Message, ModelInfo, Speed

_LENGTH = struct.Struct("<I")
MAX_FRAME_BYTES = 64 << 20


class Load(msgspec.Struct, frozen=True, tag=True):
    """The first message to a worker: load this file."""

    path: str
    settings: EngineSettings


class Submit(msgspec.Struct, frozen=True, tag=True):
    id: int
    request: ChatRequest


class Cancel(msgspec.Struct, frozen=True, tag=True):
    id: int


class Count(msgspec.Struct, frozen=True, tag=True):
    """How many tokens are these messages, as the model would see them?"""

    id: int
    messages: tuple[Message, ...]


class CountTexts(msgspec.Struct, frozen=True, tag=True):
    """How many tokens is each of these texts by itself, without a chat template around it?"""

    id: int
    texts: tuple[str, ...]


class Embed(msgspec.Struct, frozen=True, tag=True):
    """These texts as vectors, please."""

    id: int
    texts: tuple[str, ...]


class Preview(msgspec.Struct, frozen=True, tag=True):
    """What would the model see of these messages?"""

    id: int
    messages: tuple[Message, ...]


class Measure(msgspec.Struct, frozen=True, tag=True):
    """Test yourself when there is nothing else to do. `Measured` follows, however late."""


class Ping(msgspec.Struct, frozen=True, tag=True):
    pass


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Loading: `fraction` runs from 0 to 1."""

    fraction: float


class Ready(msgspec.Struct, frozen=True, tag=True):
    info: ModelInfo


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The model cannot be loaded. The worker exits."""

    reason: str


class Rendering(msgspec.Struct, frozen=True, tag=True):
    """The template of this request is being rendered. `Rendered` follows, or the worker is stuck."""

    id: int


class Rendered(msgspec.Struct, frozen=True, tag=True):
    id: int


class Counted(msgspec.Struct, frozen=True, tag=True):
    id: int
    num_tokens: int


class CountedTexts(msgspec.Struct, frozen=True, tag=True):
    id: int
    num_tokens: tuple[int, ...]


class Embedded(msgspec.Struct, frozen=True, tag=True):
    """In the order of the texts."""

    id: int
    embeddings: tuple[Embedding, ...]


class Previewed(msgspec.Struct, frozen=True, tag=True):
    id: int
    text: str
    num_tokens: int


class Measured(msgspec.Struct, frozen=True, tag=True):
    speed: Speed


class Told(msgspec.Struct, frozen=True, tag=True):
    """The next event of a request."""

    id: int
    event: Event


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A request ends without an answer."""

    id: int
    message: str
    kind: Literal["transient", "permanent", "overflow", "queue_full"] | ConstraintKind
    retry_after_s: float = 0.0

    @classmethod
    def of(cls, id: int, error: InferenceError) -> Failed:
        match error:
            case QueueFull():
                return cls(id, str(error), "queue_full", error.retry_after_s)
            case ContextOverflow():
                return cls(id, str(error), "overflow")
            case ConstraintError(kind=kind):
                return cls(id, str(error), kind)
            case ProviderError(permanent=False):
                return cls(id, str(error), "transient")
            case _:
                return cls(id, str(error), "permanent")

    @property
    def error(self) -> ProviderError:
        match self.kind:
            case "queue_full":
                return QueueFull(self.message, retry_after_s=self.retry_after_s)
            case "overflow":
                return ContextOverflow(self.message)
            case "truncated" | "unsatisfiable" | "unsupported":
                return ConstraintError(self.message, self.kind)
            case _:
                return ProviderError(self.message, permanent=self.kind == "permanent")


class Pong(msgspec.Struct, frozen=True, tag=True):
    """`step_s`: how long the batch now being computed has taken, None between batches."""

    step_s: float | None


Inquiry = Count | CountTexts | Preview | Embed  # generates nothing, and has one answer
InquiryAnswer = Counted | CountedTexts | Previewed | Embedded
ToWorker = Load | Submit | Cancel | Inquiry | Measure | Ping
FromWorker = Progress | Ready | Refused | Rendering | Rendered | InquiryAnswer | Measured | Told | Failed | Pong

_encoder = msgspec.msgpack.Encoder()
to_worker = msgspec.msgpack.Decoder(ToWorker)
from_worker = msgspec.msgpack.Decoder(FromWorker)


def frame(message: ToWorker | FromWorker) -> bytes:
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class Unframer:
    """Cuts a byte stream into the bodies of frames. Raises ValueError for one that is absurdly long."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        self._buffer += data
        bodies, at = [], 0
        while len(self._buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, at)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"A frame of {length} bytes; at most {MAX_FRAME_BYTES} were expected.")
            if len(self._buffer) - at - _LENGTH.size < length:
                break
            at += _LENGTH.size
            bodies.append(bytes(self._buffer[at : at + length]))
            at += length
        del self._buffer[:at]
        return bodies
