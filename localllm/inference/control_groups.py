"""The control groups that this process is in, as Linux shows them: where its limits are read. Knows no limit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def folders(controller: str, proc: Path = PROC, groups: Path = GROUPS) -> Iterator[tuple[Path, int]]:
    """The folder of each group, from the inmost up to the root, with its version: of version 2, then of version 1."""
    for line in read(proc / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, version = groups, 2
        elif controller in controllers.split(","):
            root, version = groups / controller, 1
        else:
            continue
        # In a container the path is often the host's, and only the root is there.
        group = root / path.lstrip("/")
        for folder in dict.fromkeys([group, *group.parents, root]):
            if folder.is_relative_to(root):
                yield folder, version


def read(path: Path) -> str:
    """What the kernel says there; nothing where it says nothing."""
    try:
        return path.read_text()
    except OSError:
        return ""
