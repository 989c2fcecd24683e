"""What a repository of the hub offers: its GGUF files at one commit, a split file as one.

Knows how llama.cpp names the parts of a split file. Whatever the hub says is checked here: below, every hash is one.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass

from huggingface_hub import ModelInfo
from huggingface_hub.hf_api import RepoSibling

from localllm.inference.errors import HubError

SHA256 = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """One object of the hub. `path` is the repository's own name for it, and nothing but a label here."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class HubFile:
    """One model file of a repository at one commit: a single part, or all parts of a split file in order."""

    repo: str
    commit: str
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        return self.parts[0].path

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self.parts)

    @property
    def sha256(self) -> str:
        """Of the content; for a split file, of its parts' hashes, for two may begin with the same part."""
        if len(self.parts) == 1:
            return self.parts[0].sha256
        return hashlib.sha256("".join(part.sha256 for part in self.parts).encode()).hexdigest()


def gguf_files(repo: str, info: ModelInfo) -> list[HubFile]:
    """The files to choose from, by name. Left out: split files with a part missing, and what has no SHA-256."""
    if not info.sha or not COMMIT.fullmatch(info.sha):
        raise HubError(f"The hub does not say which commit of {repo} it shows. Try another endpoint.", permanent=True)
    whole: list[Part] = []
    split: dict[tuple[str, int], dict[int, Part]] = defaultdict(dict)
    for sibling in info.siblings or ():
        part = _part(sibling)
        if part is None:
            continue
        if match := SPLIT.fullmatch(part.path):
            split[match["stem"], int(match["count"])][int(match["number"])] = part
        else:
            whole.append(part)
    complete = [
        tuple(parts[number] for number in range(1, count + 1))
        for (_, count), parts in split.items()
        if parts.keys() == set(range(1, count + 1))
    ]
    files = [HubFile(repo, info.sha, parts) for parts in (*((part,) for part in whole), *complete)]
    return sorted(files, key=lambda file: file.name)


def _part(sibling: RepoSibling) -> Part | None:
    path, lfs = sibling.rfilename, sibling.lfs
    if path.startswith("/") or ".." in path.split("/"):  # no name that git has
        return None
    if not path.lower().endswith(".gguf") or lfs is None or not SHA256.fullmatch(str(lfs.sha256)):
        return None
    return Part(path, lfs.size, lfs.sha256) if isinstance(lfs.size, int) and lfs.size > 0 else None
