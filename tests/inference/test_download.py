"""Files of the hub come whole or not at all, over every fault that a server, a line or a disk can have."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from localllm.inference.errors import HubError
from localllm.inference.hub.client import Hub
from localllm.inference.hub.download import Progress, download
from localllm.inference.hub.store import Store
from localllm.inference.outgoing import AddressRefused, PublicTransport, is_public
from tests.hub import REPO, TOKEN, HubServer
from tests.server import ROOT

STARTER = (ROOT / "localllm/gateway/data/starter.gguf").read_bytes()
SHA256 = hashlib.sha256(STARTER).hexdigest()
PART = f"{SHA256}.gguf.part"
TLS = ssl.create_default_context()

DOWNLOAD = """
import asyncio, resource, sys
from pathlib import Path
from localllm.inference.hub.client import Hub
from localllm.inference.hub.download import download
from localllm.inference.hub.store import Store
async def main(url, folder, limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    hub = Hub(endpoint=url)
    async for step in download(hub, await hub.find_file("someone/model-GGUF", "model.gguf"), Store(Path(folder))):
        print(step.num_bytes, flush=True)
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer({"model.gguf": STARTER}) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


async def fetch(hub: HubServer, store: Store, name: str = "model.gguf", **client: Any) -> list[Progress]:
    connection = hub.client(**client)
    file = await connection.find_file(REPO, name)
    return [step async for step in download(connection, file, store, first_wait_s=0)]


async def fetch_until(hub: HubServer, store: Store, num_bytes: int) -> None:
    """Pause when so much is here."""
    connection = hub.client()
    file = await connection.find_file(REPO, "model.gguf")
    async with aclosing(download(connection, file, store, first_wait_s=0)) as steps:
        async for step in steps:
            if step.num_bytes >= num_bytes:
                return


def names(store: Store) -> list[str]:
    return sorted(path.name for path in store.folder.rglob("*") if path.is_file())


def run(hub: HubServer, store: Store, limit: int = 1 << 40) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DOWNLOAD, hub.url, str(store.folder), str(limit)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


# Listing.


async def test_it_lists_gguf_files_with_size_and_hash_at_a_commit(hub: HubServer) -> None:
    (file,) = (await hub.client().repository(REPO)).files
    assert (file.name, file.size_bytes, file.sha256) == ("model.gguf", len(STARTER), SHA256)
    assert file.commit == hub.commit


async def test_it_lists_a_split_file_as_one_and_leaves_out_one_with_a_missing_part(hub: HubServer) -> None:
    hub.files = {f"q4/m-{n:05}-of-00003.gguf": b"x" * n for n in (3, 1, 2)} | {"n-00001-of-00002.gguf": b"y"}
    (file,) = (await hub.client().repository(REPO)).files
    assert [part.size_bytes for part in file.parts] == [1, 2, 3]
    assert file == await hub.client().find_file(REPO, "q4/m-00002-of-00003.gguf")


async def test_it_names_what_there_is_when_a_file_is_not_there(hub: HubServer) -> None:
    with pytest.raises(HubError, match=r"no GGUF file named 'other\.gguf'\. Its GGUF files: model\.gguf"):
        await hub.client().find_file(REPO, "other.gguf")


@pytest.mark.parametrize(
    ("name", "quantisation"),
    [
        ("Qwen_Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("q4/Llama-3.2-3B-UD-IQ2_XXS.gguf", "IQ2_XXS"),
        ("Q8_0/model-BF16-00001-of-00001.gguf", "BF16"),
        ("UD-Q2_K_XL/model-00001-of-00001.gguf", "Q2_K_XL"),
        ("phi-3-mini.Q8_0.gguf", "Q8_0"),
        ("model-Q4_K_M_v2.gguf", "Q4_K_M"),
        ("gpt-oss-MXFP4.gguf", "MXFP4"),
        ("Q.gguf", ""),
        ("seq2_seq.gguf", ""),
    ],
)
async def test_it_reads_the_quantisation_off_the_name(hub: HubServer, name: str, quantisation: str) -> None:
    hub.files = {name: STARTER}
    (file,) = (await hub.client().repository(REPO)).files
    assert file.quantisation == quantisation


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ({"license": "apache-2.0"}, "apache-2.0"),
        ({"license": "other", "license_name": "qwen-research"}, "qwen-research"),
        ({"license": ["mit", "gpl"]}, "['mit', 'gpl']"),
        ({"license": "mit\n\x00"}, ""),
        ({"license": "x" * 1000}, "x" * 100),
        ({}, ""),
    ],
)
async def test_it_says_the_licence_of_the_model_card(hub: HubServer, card: dict[str, object], licence: str) -> None:
    hub.card = card
    assert (await hub.client().repository(REPO)).licence == licence


@pytest.mark.parametrize("sha256", ["../../x", "", "A" * 64, "0" * 63])
async def test_it_does_not_offer_what_has_no_proper_hash(hub: HubServer, sha256: str) -> None:
    hub.promised["model.gguf"] = sha256
    assert (await hub.client().repository(REPO)).files == ()


@pytest.mark.parametrize("name", ["../../x.gguf", "/etc/x.gguf", "a/../../b.gguf"])
async def test_it_does_not_offer_what_has_no_proper_name(hub: HubServer, name: str) -> None:
    hub.files = {name: STARTER}
    assert (await hub.client().repository(REPO)).files == ()


@pytest.mark.parametrize("repo", ["../../x", "a/b/c", "nonsense", "", "a b", "x" * 300, "https://example.org/a/b"])
async def test_it_asks_for_no_impossible_repository(hub: HubServer, repo: str) -> None:
    with pytest.raises(HubError, match="write it as owner/name"):
        await hub.client().repository(repo)
    assert hub.requests == []


async def test_it_reads_a_range_and_no_more(hub: HubServer) -> None:
    client = hub.client()
    file = await client.find_file(REPO, "model.gguf")
    assert await client.read_range(file, 5, 100) == STARTER[5:105]
    assert await client.read_range(file, len(STARTER) - 3, 100) == STARTER[-3:]
    assert await client.read_range(file, len(STARTER), 1) == b""


# The whole way.


async def test_it_brings_a_file_into_the_store_under_its_hash(hub: HubServer, store: Store) -> None:
    steps = await fetch(hub, store)
    assert (store.folder / f"{SHA256}.gguf").read_bytes() == STARTER
    assert names(store) == [f"{SHA256}.gguf"]
    assert steps[-1] == Progress(len(STARTER), len(STARTER))


async def test_it_asks_for_nothing_that_is_here(hub: HubServer, store: Store) -> None:
    await fetch(hub, store)
    await fetch(hub, store)
    assert len(hub.downloads()) == 1


async def test_it_tells_how_far_and_how_fast_it_is(hub: HubServer, store: Store) -> None:
    hub.pause_s = 0.02
    steps = await fetch(hub, store)
    assert [step.num_bytes for step in steps] == sorted(step.num_bytes for step in steps)
    assert any(step.bytes_per_s and step.left_s for step in steps)


async def test_it_keeps_a_split_file_where_the_engine_finds_its_parts(hub: HubServer, store: Store) -> None:
    hub.files = {f"q4/Big Model-{n:05}-of-00002.gguf": bytes([n]) * 100_000 for n in (1, 2)}
    await fetch(hub, store, "q4/Big Model-00001-of-00002.gguf")
    assert names(store) == ["model-00001-of-00002.gguf", "model-00002-of-00002.gguf"]


@pytest.mark.parametrize("name", ["CON.gguf", "a/b/c.gguf", f"{'n' * 300}.gguf", "🦙 %2e?#.gguf"])
async def test_it_lets_no_name_choose_the_place(hub: HubServer, store: Store, name: str) -> None:
    hub.files = {name: STARTER}
    await fetch(hub, store, name)
    assert names(store) == [f"{SHA256}.gguf"]
    assert list(store.folder.parent.iterdir()) == [store.folder]


async def test_it_sends_the_token_to_the_hub_and_to_nobody_else(hub: HubServer, store: Store) -> None:
    hub.is_gated = True
    await fetch(hub, store, token=TOKEN)
    sent = {request.place: request.headers.get("authorization") for request in hub.requests}
    assert sent == {"hub": f"Bearer {TOKEN}", "storage": None}


# Pausing and going on.


async def test_it_goes_on_from_where_it_was_paused(hub: HubServer, store: Store) -> None:
    hub.pause_s = 0.02
    await fetch_until(hub, store, 1 << 20)
    size = (store.folder / PART).stat().st_size
    hub.pause_s = 0
    await fetch(hub, store)
    assert hub.downloads()[-1].headers["range"] == f"bytes={size}-"
    assert names(store) == [f"{SHA256}.gguf"]


async def test_it_starts_anew_when_the_file_has_another_etag(hub: HubServer, store: Store) -> None:
    hub.pause_s = 0.02
    await fetch_until(hub, store, 1 << 20)
    (store.folder / PART).write_bytes(b"x" * (1 << 20))  # what came under the first one is no part of the second
    hub.etag, hub.pause_s = '"another"', 0
    await fetch(hub, store)
    assert [request.status for request in hub.downloads()] == [200, 200]
    assert (store.folder / f"{SHA256}.gguf").read_bytes() == STARTER


async def test_it_starts_anew_when_the_server_knows_no_ranges(hub: HubServer, store: Store) -> None:
    hub.pause_s = 0.02
    await fetch_until(hub, store, 1 << 20)
    hub.ignores_ranges, hub.pause_s = True, 0
    assert (await fetch(hub, store))[-1].num_bytes == len(STARTER)


async def test_it_asks_for_no_part_of_a_split_file_twice(hub: HubServer, store: Store) -> None:
    hub.files = {f"m-{n:05}-of-00002.gguf": bytes([n]) * 100_000 for n in (1, 2)}
    hub.promised["m-00002-of-00002.gguf"] = "0" * 64
    file = await hub.client().find_file(REPO, "m-00001-of-00002.gguf")
    for _ in range(2):
        with pytest.raises(HubError, match="m-00002-of-00002"):
            _ = [step async for step in download(hub.client(), file, store, first_wait_s=0)]
    assert [request.path for request in hub.downloads()] == [
        f"/{file.parts[0].sha256}",
        *[hub.downloads()[-1].path] * 2,
    ]


async def test_it_refuses_a_piece_that_it_did_not_ask_for(hub: HubServer, store: Store) -> None:
    hub.drop_after = 1 << 20
    hub.shift = 1
    with pytest.raises(HubError, match="another piece"):
        await fetch(hub, store)
    hub.drop_after, hub.shift = None, 0
    await fetch(hub, store)
    assert (store.folder / f"{SHA256}.gguf").read_bytes() == STARTER


async def test_it_starts_anew_when_more_lies_here_than_there_is(hub: HubServer, store: Store) -> None:
    store.folder.mkdir()
    (store.folder / PART).write_bytes(STARTER + b"more")
    with pytest.raises(HubError, match="It was deleted"):
        await fetch(hub, store)
    await fetch(hub, store)
    assert names(store) == [f"{SHA256}.gguf"]


def test_it_goes_on_after_its_process_was_killed(hub: HubServer, store: Store) -> None:
    hub.pause_s = 0.05
    process = run(hub, store)
    assert process.stdout is not None
    next(line for line in process.stdout if int(line) > 500_000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hub.pause_s = 0
    asyncio.run(fetch(hub, store))
    assert hub.downloads()[-1].status == 206
    assert names(store) == [f"{SHA256}.gguf"]


async def test_only_one_process_downloads_into_a_store(store: Store) -> None:
    async with store.alone():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), store.alone():
                pass


# Faults of the line and the server.


@pytest.mark.parametrize("tenth", range(1, 10))
async def test_it_survives_a_drop_at_every_tenth(hub: HubServer, store: Store, tenth: int) -> None:
    hub.drop_after = len(STARTER) * tenth // 10
    steps = await fetch(hub, store)
    assert (store.folder / f"{SHA256}.gguf").read_bytes() == STARTER
    assert any("failed" in step.delay for step in steps)


async def test_it_gives_up_a_line_that_brings_nothing(hub: HubServer, store: Store) -> None:
    hub.drop_after = 0
    with pytest.raises(HubError, match=r"model\.gguf"):
        await fetch(hub, store)
    assert len(hub.downloads()) == 6


async def test_it_gives_up_a_line_that_drips(hub: HubServer, store: Store) -> None:
    hub.chunk_bytes, hub.pause_s = 10, 0.01
    with pytest.raises(HubError, match="which leads nowhere"):
        await fetch(hub, store, silence_s=0.1)


async def test_it_gives_up_a_server_that_falls_silent(hub: HubServer, store: Store) -> None:
    hub.pause_s = 30
    with pytest.raises(HubError, match="failed"):
        await fetch(hub, store, silence_s=0.05)


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_it_waits_for_a_busy_hub(hub: HubServer, store: Store, status: int) -> None:
    client = hub.client()
    file = await client.find_file(REPO, "model.gguf")
    hub.refusals = [(status, {})] * 3
    steps = [step async for step in download(client, file, store, first_wait_s=0)]
    assert [f"({status} for" in step.delay for step in steps[:3]] == [True] * 3
    assert steps[-1].num_bytes == len(STARTER)


async def test_it_asks_the_hub_again_when_the_storage_refuses_a_link_that_ran_out(hub: HubServer, store: Store) -> None:
    hub.storage_refusals = [403, 403]
    steps = await fetch(hub, store)
    assert ["(403 for" in step.delay for step in steps[:2]] == [True, True]
    assert [request.status for request in hub.requests if request.place == "hub"] == [200, 302, 302, 302]


async def test_it_waits_as_long_as_the_hub_says(hub: HubServer, store: Store) -> None:
    client = hub.client()
    file = await client.find_file(REPO, "model.gguf")
    hub.refusals = [(429, {"Retry-After": "1"})]
    began = time.monotonic()
    assert [step async for step in download(client, file, store, first_wait_s=0)]
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize(
    ("status", "headers", "sentence"),
    [
        (401, {}, "there is no such repository, or it is private"),
        (401, {"X-Error-Code": "GatedRepo"}, f"accept the licence at .*/{REPO}"),
        (403, {"X-Error-Code": "GatedRepo"}, f"accept the licence at .*/{REPO}, and set HF_TOKEN"),
        (404, {"X-Error-Code": "EntryNotFound"}, "Check repository, file and revision"),
        (418, {}, "answered 418"),
    ],
)
async def test_it_says_why_the_hub_refuses(hub: HubServer, status: int, headers: dict[str, str], sentence: str) -> None:
    hub.refusals = [(status, headers)]
    with pytest.raises(HubError, match=sentence) as refusal:
        await hub.client().repository(REPO)
    assert refusal.value.permanent and str(refusal.value).endswith(".")


async def test_it_tells_who_has_a_token_that_it_is_not_enough(hub: HubServer, store: Store) -> None:
    hub.is_gated = True
    with pytest.raises(HubError, match="check that HF_TOKEN is a valid token") as refusal:
        await fetch(hub, store, token="hf_other")
    assert "hf_other" not in str(refusal.value)


async def test_it_deletes_what_has_the_wrong_hash_and_says_so(hub: HubServer, store: Store) -> None:
    hub.promised["model.gguf"] = "0" * 64
    hub.files["model.gguf"] = STARTER
    hub.redirect = f"{hub.storage_url}/{SHA256}"
    with pytest.raises(HubError, match=f"{SHA256}.* promises 0{{64}}. It was deleted"):
        await fetch(hub, store)
    assert names(store) == []


async def test_it_does_not_follow_a_hub_in_circles(hub: HubServer, store: Store) -> None:
    hub.redirect = f"{hub.url}/{REPO}/resolve/{hub.commit}/model.gguf"
    with pytest.raises(HubError, match="leads nowhere"):
        await fetch(hub, store)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"id": "a", "siblings": 1}'])
async def test_it_says_when_the_endpoint_is_no_hub(hub: HubServer, body: bytes) -> None:
    hub.listing = body
    with pytest.raises(HubError, match=r"HF_ENDPOINT|which commit"):
        await hub.client().repository(REPO)


# The disk.


async def test_it_asks_for_no_byte_that_the_disk_has_no_room_for(hub: HubServer, store: Store) -> None:
    client = hub.client()
    hub.claimed_size = 1 << 60
    file = await client.find_file(REPO, "model.gguf")
    with pytest.raises(HubError, match=r"needs .* GB, but .* has .* free"):
        await anext(download(client, file, store))
    assert hub.downloads() == []


def test_it_says_when_the_disk_is_full_and_keeps_what_came(hub: HubServer, store: Store) -> None:
    process = run(hub, store, limit=1_000_000)
    _, errors = process.communicate()
    assert "is full. What came so far is kept" in errors
    assert (store.folder / PART).stat().st_size == 1_000_000
    asyncio.run(fetch(hub, store))
    assert hub.downloads()[-1].headers["range"] == "bytes=1000000-"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_it_says_when_the_folder_may_not_be_written(hub: HubServer, store: Store) -> None:
    store.folder.mkdir(mode=0o500)
    with pytest.raises(HubError, match="cannot be written"):
        await fetch(hub, store)


async def test_it_removes_what_is_unfinished_when_it_is_discarded(hub: HubServer, store: Store) -> None:
    hub.pause_s = 0.02
    await fetch_until(hub, store, 100_000)
    store.discard(await hub.client().find_file(REPO, "model.gguf"))
    assert names(store) == []


# What may be reached.


async def test_it_opens_no_connection_when_offline(hub: HubServer, store: Store) -> None:
    file = await hub.client().find_file(REPO, "model.gguf")
    hub.requests.clear()
    offline = hub.client(is_offline=True)
    for call in (offline.repository(REPO), offline.read_range(file, 0, 4), anext(download(offline, file, store))):
        with pytest.raises(HubError, match="LOCALLLM_OFFLINE"):
            await call
    assert hub.requests == []


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "http://no-such-host.invalid"])
async def test_it_says_when_the_hub_cannot_be_reached(endpoint: str) -> None:
    with pytest.raises(HubError, match="Check the network") as refusal:
        await Hub(endpoint=endpoint).repository(REPO)
    assert not refusal.value.permanent


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        *((address, True) for address in ("8.8.8.8", "2606:4700::1111", "::ffff:808:808", "64:ff9b::808:808")),
        *((address, False) for address in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1", "0.0.0.0")),
        *((address, False) for address in ("::1", "::", "fd00::1", "fe80::1", "ff02::1", "224.0.0.1", "240.0.0.1")),
        *((address, False) for address in ("64:ff9b:1::808:808", "fec0::1", "0:0:0:1::1", "4000::1")),
        *((address, False) for address in ("::ffff:7f00:1", "::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::")),
    ],
)
def test_it_knows_a_public_address(address: str, expected: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is expected


async def test_a_redirect_of_a_public_hub_leads_to_no_private_address(hub: HubServer) -> None:
    hub.redirect = hub.storage_url.replace("127.0.0.1", "localhost")
    transport = PublicTransport(TLS, trusted_hosts=["127.0.0.1"], schemes=("http", "https"))
    async with httpx2.AsyncClient(transport=transport, follow_redirects=True) as client:
        with pytest.raises(AddressRefused, match="localhost lies in a private network"):
            await client.get(f"{hub.url}/{REPO}/resolve/{hub.commit}/model.gguf")
    assert hub.downloads() == []


async def test_a_redirect_of_a_public_hub_stays_encrypted() -> None:
    async with httpx2.AsyncClient(transport=PublicTransport(TLS)) as client:
        with pytest.raises(AddressRefused, match="https is needed"):
            await client.get("http://example.org/")
