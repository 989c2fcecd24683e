"""Model files that lie on this machine already, under the folders that the administrator has named.

The pages take nothing from elsewhere: LOCALLLM_MODEL_ROOTS bounds what whoever may add models can make the server
open. The command line and LOCALLLM_MODEL take any path.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings

from localllm.gateway.models import FileVersion, LanguageModel
from localllm.gateway.registration import register
from localllm.inference.engine.gguf import check_name, parts
from localllm.inference.errors import ModelRefused
from localllm.inference.hub.files import SPLIT
from localllm.inference.model_file import Stamp

MAX_CANDIDATES = 500  # on a page
MAX_SEEN = 50_000  # entries of folders that are looked at
MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that might be registered; of a split one the first part. `model` is what it is already, if anything."""

    root: Path
    path: Path
    size_bytes: int
    model: LanguageModel | None

    @property
    def label(self) -> str:
        return str(self.path.relative_to(self.root))


def roots() -> list[Path]:
    """The folders of LOCALLLM_MODEL_ROOTS that are there."""
    return [root.resolve() for root in settings.MODEL_ROOTS if root.is_dir()]


async def register_from_root(path: str, **defaults: Any) -> LanguageModel:
    """Check, try and register the file where it lies. Raises ModelRefused."""
    return await register(await asyncio.to_thread(allowed, path), **defaults)


def allowed(text: str) -> Path:
    """The real place of the file at that full path; raises ModelRefused unless it, and all of it, lies under a root."""
    known = roots()
    if not known:
        raise ModelRefused(
            "No folder is open for this. Name some in LOCALLLM_MODEL_ROOTS, separated by colons, or register the file "
            "with `manage.py registermodel PATH`."
        )
    path = Path(text.strip()).expanduser()
    check_name(path)
    if not path.is_absolute():
        raise ModelRefused(f"“{path}” is not a full path. Begin with /.")
    try:
        places = [part.resolve(strict=True) for part in parts(path.resolve())]
    except (OSError, ValueError, RuntimeError):  # gone, a NUL in it, links in a circle
        places = []
    # What lies elsewhere and what does not exist are told alike: nobody shall find out by this what there is.
    if not places or not all(any(place.is_relative_to(root) for root in known) for place in places):
        folders = ", ".join(str(root) for root in known)
        raise ModelRefused(f"There is no such file under {folders}. Other folders are not open to the pages.")
    return places[0]


def candidates() -> list[Candidate]:
    """The GGUF files under the roots by name, at most MAX_CANDIDATES."""
    models = {file.path: file.model for file in FileVersion.objects.select_related("model")}
    found: list[Candidate] = []
    for root in roots():
        for path in sorted(_files(root)):
            if len(found) == MAX_CANDIDATES:
                return found
            try:
                place = allowed(str(path))
                if place.is_file():
                    found.append(Candidate(root, path, Stamp.of(place).size_bytes, models.get(str(place))))
            except (ModelRefused, OSError):
                continue
    return found


def _files(root: Path) -> Iterator[Path]:
    """GGUF files below `root`. Folders are not followed through links, hidden ones are passed over."""
    num_seen = 0
    for folder, names, files in os.walk(root):
        num_seen += len(names) + len(files)
        is_deep = len(Path(folder).relative_to(root).parts) >= MAX_DEPTH
        names[:] = [] if is_deep or num_seen > MAX_SEEN else sorted(name for name in names if not name.startswith("."))
        for name in files:
            part = SPLIT.fullmatch(name)
            if name.endswith(".gguf") and not name.startswith(".") and (part is None or int(part["number"]) == 1):
                yield Path(folder, name)
