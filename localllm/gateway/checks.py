"""What `manage.py check` says of settings that would lose data or let strangers in."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register

from localllm.gateway.security.first_run import LOOPBACK_NAMES

SAFE_SQLITE = (3, 51, 3)
NETWORK_FILE_SYSTEMS = {
    *("afs", "ceph", "cifs", "glusterfs", "nfs", "nfs4", "smb2", "smb3", "smbfs"),
    *("fuse.ceph", "fuse.glusterfs", "fuse.sshfs"),
}


@register(Tags.security)
def check_address(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    if settings.IS_LOOPBACK:
        return []
    hint = (
        "Name every address that browsers use, separated by commas, such as "
        "LOCALLLM_ALLOWED_HOSTS=llm.example.org,192.168.1.5"
    )
    if LOOPBACK_NAMES.issuperset(settings.ALLOWED_HOSTS):
        message = (
            f"HOST is {settings.HOST}, so other machines can reach this server, "
            "but LOCALLLM_ALLOWED_HOSTS does not say by what name."
        )
        return [Error(message, hint=hint, id="localllm.E001")]
    if "*" in settings.ALLOWED_HOSTS:
        message = (
            f"LOCALLLM_ALLOWED_HOSTS is * while HOST is {settings.HOST}: any web site could then pass for this server."
        )
        return [Error(message, hint=hint, id="localllm.E002")]
    return []


@register(Tags.database)
def check_sqlite(
    app_configs: Sequence[AppConfig] | None, version: tuple[int, ...] = sqlite3.sqlite_version_info, **kwargs: Any
) -> list[CheckMessage]:
    if version >= SAFE_SQLITE:
        return []
    found, safe = (".".join(map(str, v)) for v in (version, SAFE_SQLITE))
    return [
        Error(
            f"SQLite {found} can corrupt a database in write-ahead mode; {safe} or newer is needed.",
            hint="Build the environment again with `make env`: it brings a newer SQLite.",
            id="localllm.E003",
        )
    ]


@register
def check_data_directory(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    home: Path = settings.HOME
    existing = next(path for path in (home, *home.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return [
            Error(
                f"The data directory {home} cannot be written: {existing} does not allow it.",
                hint="Set LOCALLLM_HOME to a directory of your own.",
                id="localllm.E004",
            )
        ]
    kind = file_system(existing)
    if kind in NETWORK_FILE_SYSTEMS:
        return [
            Error(
                f"The data directory {home} lies on a network file system ({kind}), where SQLite loses data.",
                hint="Set LOCALLLM_HOME to a directory on a disk of this machine.",
                id="localllm.E005",
            )
        ]
    return []


@register
def check_hub(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    url = urlsplit(settings.HF_ENDPOINT)
    if url.scheme in ("http", "https") and url.hostname:
        return []
    return [
        Error(
            f"HF_ENDPOINT is “{settings.HF_ENDPOINT}”, which is no address of a hub.",
            hint="Write the whole address of a mirror, such as https://hf.example.org, or leave it unset.",
            id="localllm.E007",
        )
    ]


@register
def check_memory_share(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    share = settings.MEMORY_SHARE
    if 0 < share <= 1:
        return []
    return [
        Error(
            f"LOCALLLM_MEMORY_SHARE is {share}; it must be over 0 and at most 1.",
            hint="0.8 leaves a fifth of the machine's memory to everything else.",
            id="localllm.E008",
        )
    ]


@register
def check_assertions(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    if not sys.flags.optimize:
        return []
    return [
        Error(
            "Python runs with -O, which removes checks that this program and its libraries rely on.",
            hint="Run it without -O, and without PYTHONOPTIMIZE.",
            id="localllm.E006",
        )
    ]


def file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the file system `path` lies on; empty where the system does not tell."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return ""
    found = ("", "")
    for _, point, kind, *_ in lines:
        point = point.replace("\\040", " ")
        if path.is_relative_to(point) and len(point) >= len(found[0]):
            found = (point, kind)
    return found[1]
