"""Settings that would lose data or let strangers in are named, with the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from localllm.gateway import checks


def ids(messages: list[Any]) -> list[str]:
    assert all(message.hint for message in messages)
    return [message.id for message in messages]


@pytest.mark.parametrize(
    ("loopback", "hosts", "found"),
    [
        (True, ["localhost"], []),
        (False, ["localhost", "127.0.0.1"], ["localllm.E001"]),
        (False, ["*"], ["localllm.E002"]),
        (False, ["llm.example.org"], []),
    ],
)
def test_an_open_server_needs_its_names(settings: Any, loopback: bool, hosts: list[str], found: list[str]) -> None:
    settings.IS_LOOPBACK, settings.ALLOWED_HOSTS = loopback, hosts
    assert ids(checks.check_address(None)) == found


@pytest.mark.parametrize(("version", "found"), [((3, 40, 1), ["localllm.E003"]), ((3, 51, 3), [])])
def test_an_old_sqlite_is_refused(version: tuple[int, ...], found: list[str]) -> None:
    assert ids(checks.check_sqlite(None, version)) == found


def test_this_environment_has_a_sqlite_that_is_safe() -> None:
    assert checks.check_sqlite(None) == []


def test_a_data_directory_that_cannot_be_one_is_refused(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings.HOME = tmp_path / "file" / "home"
    assert ids(checks.check_data_directory(None)) == ["localllm.E004"]
    settings.HOME = tmp_path / "not yet there"
    assert checks.check_data_directory(None) == []


def test_a_network_file_system_is_recognised(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/sda / ext4 rw 0 0\nserver:/srv /srv/my\\040data nfs4 rw 0 0\n")
    assert checks.file_system(Path("/srv/my data/localllm"), mounts) in checks.NETWORK_FILE_SYSTEMS
    assert checks.file_system(Path("/srv/other"), mounts) == "ext4"


@pytest.mark.parametrize("endpoint", ["", "hf.example.org", "ftp://hf.example.org", "https://"])
def test_an_endpoint_that_is_no_address_is_refused(settings: Any, endpoint: str) -> None:
    assert checks.check_hub(None) == []
    settings.HF_ENDPOINT = endpoint
    assert ids(checks.check_hub(None)) == ["localllm.E007"]


@pytest.mark.parametrize(
    ("share", "found"), [(0.8, []), (1.0, []), (0.0, ["localllm.E008"]), (80.0, ["localllm.E008"])]
)
def test_a_share_of_the_memory_is_a_share(settings: Any, share: float, found: list[str]) -> None:
    settings.MEMORY_SHARE = share
    assert ids(checks.check_memory_share(None)) == found
