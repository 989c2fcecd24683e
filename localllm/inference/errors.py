"""What may go wrong below the web, in sentences that may be shown to the user.

InferenceError
├── ModelRefused      a file that will never serve, with the reason
├── DocumentRefused   a file that cannot be read as text, with the reason
├── HubError          the hub could not be asked, or a file not be had from it
└── ProviderError     no answer, or no more of it; `permanent` means that asking again is no use
    ├── ContextOverflow  the prompt, or prompt and answer, are longer than the window
    ├── ConstraintError  the answer cannot be decoded by its schema; `kind` says in what way
    ├── QueueFull     come back after `retry_after_s`
    ├── NoRoom        other models hold the memory; come back after `retry_after_s`
    └── EngineDied    the worker ended under a running request; the text so far may be continued
"""

from __future__ import annotations

from typing import Literal

ConstraintKind = Literal["truncated", "unsatisfiable", "unsupported"]


class InferenceError(Exception):
    """Something the caller may show to the user: `str(exc)` is a full sentence."""


class ModelRefused(InferenceError):
    """The file cannot serve as a model."""


class DocumentRefused(InferenceError):
    """The file cannot be read as text."""


class HubError(InferenceError):
    """Nothing came from the hub; unless `permanent`, asking again after `retry_after_s` may help."""

    def __init__(self, message: str, *, permanent: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.retry_after_s = retry_after_s


class ProviderError(InferenceError):
    """A provider could not answer."""

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class ContextOverflow(ProviderError):
    """The conversation does not fit the model's window; nothing was cut."""

    def __init__(self, message: str) -> None:
        super().__init__(message, permanent=True)


class ConstraintError(ProviderError):
    """The answer cannot be decoded by its schema: too little room, nothing that fits, or too costly."""

    def __init__(self, message: str, kind: ConstraintKind = "unsupported") -> None:
        super().__init__(message, permanent=True)
        self.kind = kind


class QueueFull(ProviderError):
    """Too many requests wait already."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoRoom(ProviderError):
    """Models that are answering hold the memory that this one needs."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineDied(ProviderError):
    """The worker process crashed, was killed or hung."""
