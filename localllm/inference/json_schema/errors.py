"""Why a schema cannot be used, or can never be satisfied, in a sentence with path and keyword."""

from __future__ import annotations

from typing import Literal

from localllm.inference.errors import InferenceError


class SchemaRefused(InferenceError):
    """A schema that this program will not decode for.

    `path` is a JSON pointer into the schema, `keyword` the one at fault, if one is. `unsatisfiable` means
    that no instance exists; `unsupported` everything else, limits included.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str = "",
        keyword: str | None = None,
        kind: Literal["unsupported", "unsatisfiable"] = "unsupported",
    ) -> None:
        super().__init__(message)
        self.path = path
        self.keyword = keyword
        self.kind = kind
