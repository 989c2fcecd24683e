"""What a repository of the hub offers: its GGUF files at one commit, a split file as one, and its licence.

Knows how llama.cpp names the parts of a split file, and how people name quantisations. Whatever the hub says is
checked here: below, every hash is one.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass

from huggingface_hub import ModelCardData, ModelInfo
from huggingface_hub.hf_api import RepoSibling

from localllm.inference.errors import HubError

SHA256 = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
QUANTISATION = re.compile(
    r"(?<![A-Z0-9])(Q\d_K(?:_(?:S|M|L|XL))?|Q\d_\d(?:_\d)*|IQ\d_(?:XXS|XS|S|M|NL)|TQ\d_\d|MXFP4|BF16|F16|F32)(?![A-Z0-9])"
)
MAX_LICENCE = 100  # characters


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

    @property
    def label(self) -> str:
        """Its name without folder, number and ending."""
        split = SPLIT.fullmatch(self.name)
        return (split["stem"] if split else self.name[: -len(".gguf")]).rsplit("/", 1)[-1]

    @property
    def quantisation(self) -> str:
        """As its name says it, or its folder, such as `Q4_K_M`; empty where neither does."""
        found = QUANTISATION.findall(self.label.upper()) or QUANTISATION.findall(self.name.upper())
        return found[-1] if found else ""


@dataclass(frozen=True, slots=True)
class Repository:
    """What there is to choose from. `licence` is what its model card says, empty where it says nothing."""

    name: str
    commit: str
    licence: str
    files: tuple[HubFile, ...]

    def file(self, name: str) -> HubFile:
        """The file of that name; any part of a split file names the whole. Raises HubError."""
        for file in self.files:
            if any(part.path == name for part in file.parts):
                return file
        names = ", ".join(file.name for file in self.files) or "none"
        raise HubError(f"{self.name} has no GGUF file named {name!r}. Its GGUF files: {names}.", permanent=True)


def repository(name: str, info: ModelInfo) -> Repository:
    """Raises HubError where the hub does not say of which commit it speaks."""
    if not info.sha or not COMMIT.fullmatch(info.sha):
        raise HubError(f"The hub does not say which commit of {name} it shows. Try another endpoint.", permanent=True)
    return Repository(name, info.sha, _licence(info), tuple(_gguf_files(name, info.sha, info)))


def _gguf_files(repo: str, commit: str, info: ModelInfo) -> list[HubFile]:
    """By name. Left out: split files with a part missing, and what has no SHA-256."""
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
    files = [HubFile(repo, commit, parts) for parts in (*((part,) for part in whole), *complete)]
    return sorted(files, key=lambda file: file.name)


def _part(sibling: RepoSibling) -> Part | None:
    path, lfs = sibling.rfilename, sibling.lfs
    if path.startswith("/") or ".." in path.split("/"):  # no name that git has
        return None
    if not path.lower().endswith(".gguf") or lfs is None or not SHA256.fullmatch(str(lfs.sha256)):
        return None
    return Part(path, lfs.size, lfs.sha256) if isinstance(lfs.size, int) and lfs.size > 0 else None


def _licence(info: ModelInfo) -> str:
    """`other` has a name of its own beside it."""
    if not isinstance(info.card_data, ModelCardData):
        return ""
    licence, name = [str(info.card_data.get(key) or "") for key in ("license", "license_name")]
    licence = name if name and licence in ("", "other") else licence
    return licence[:MAX_LICENCE] if licence.isprintable() else ""
