"""From a repository to a model that answers: jobs, rows, the command, and a server that is killed in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from gguf import GGUFReader, GGUFWriter
from pytest_django.fixtures import Settings

from localllm.gateway import database, downloads
from localllm.gateway.jobs import JobRunner
from localllm.gateway.models import Download, Job, LanguageModel
from localllm.gateway.registration import STARTER as STARTER_FIELDS
from localllm.gateway.registration import register
from localllm.inference.errors import HubError
from tests.hub import REPO, HubServer
from tests.server import ROOT, Server, manage

STARTER_PATH = ROOT / "localllm/gateway/data/starter.gguf"
STARTER = STARTER_PATH.read_bytes()
SHA256 = hashlib.sha256(STARTER).hexdigest()
NEVER = 3600.0
LIMIT_S = 60.0

rows = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer({"model.gguf": STARTER, "other.gguf": STARTER + bytes(64)}) as server:
        yield server


@pytest.fixture
def home(hub: HubServer, settings: Settings, tmp_path: Path) -> Path:
    settings.HOME, settings.HF_ENDPOINT = tmp_path, hub.url
    return tmp_path


@pytest.fixture
async def runner(home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JobRunner]:
    """The runner of this process, as a server starts it."""
    runner = JobRunner(NEVER)
    monkeypatch.setattr("localllm.gateway.jobs.runner", runner)
    await runner.start({Download.KIND: downloads.run})
    yield runner
    await runner.drain(5)


async def until(row: Download, is_so: Callable[[Download], bool]) -> Download:
    async with asyncio.timeout(LIMIT_S):
        while not is_so(row):
            await asyncio.sleep(0.02)
            row = await database.read(Download.objects.select_related("job", "model").get, pk=row.pk)
    return row


async def until_over(row: Download) -> Download:
    return await until(row, lambda row: row.job.state in Job.OVER)


def split(folder: Path) -> list[bytes]:
    """The starter in two parts, as llama-gguf-split makes them."""
    whole = GGUFReader(STARTER_PATH)
    middle, parts = len(whole.tensors) // 2, []
    for number, tensors in enumerate((whole.tensors[:middle], whole.tensors[middle:])):
        path = folder / f"{number}.gguf"
        part = GGUFWriter(path, whole.fields["general.architecture"].contents())
        if number == 0:
            for name, field in whole.fields.items():
                if not name.startswith("GGUF.") and name != "general.architecture":
                    part.add_key_value(name, field.contents(), field.types[0], field.types[-1])
        part.add_uint16("split.no", number)
        part.add_uint16("split.count", 2)
        part.add_int32("split.tensors.count", len(whole.tensors))
        for tensor in tensors:
            part.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        part.write_header_to_file()
        part.write_kv_data_to_file()
        part.write_tensors_to_file()
        part.close()
        parts.append(path.read_bytes())
    return parts


def is_under_way(row: Download) -> bool:
    return 0 < row.num_bytes < row.size_bytes


class TestRows:
    pytestmark = rows

    async def test_a_file_becomes_a_model_named_after_it(self, runner: JobRunner, home: Path) -> None:
        row = await until_over(await downloads.request(REPO, "model.gguf"))
        assert (row.job.state, row.job.error, row.num_bytes) == ("complete", "", len(STARTER))
        assert row.model is not None
        assert (row.model.name, row.model.sha256) == ("model", SHA256)
        assert row.model.path == str(home / f"models/{SHA256}.gguf")

    async def test_a_split_file_becomes_one_model(self, runner: JobRunner, hub: HubServer, tmp_path: Path) -> None:
        hub.files = {f"q4/Starter-{n:05}-of-00002.gguf": part for n, part in enumerate(split(tmp_path), 1)}
        row = await until_over(await downloads.request(REPO, "q4/Starter-00002-of-00002.gguf"))
        assert (row.job.state, row.job.error) == ("complete", "")
        assert row.model is not None
        assert (row.model.name, row.model.sha256) == ("starter", row.sha256)

    async def test_its_model_has_licence_and_repository_and_is_loaded_as_asked(
        self, runner: JobRunner, hub: HubServer
    ) -> None:
        hub.card = {"license": "other", "license_name": "toy-licence"}
        model = (await until_over(await downloads.request(REPO, "model.gguf", n_ctx=256))).model
        assert model is not None
        assert (model.licence, model.repository, model.n_ctx) == ("toy-licence", REPO, 256)

    async def test_the_first_real_model_takes_over_from_the_starter(self, runner: JobRunner) -> None:
        await register(STARTER_PATH, **STARTER_FIELDS)
        first = (await until_over(await downloads.request(REPO, "model.gguf"))).model
        second = (await until_over(await downloads.request(REPO, "other.gguf"))).model
        default = await database.read(LanguageModel.objects.default)
        assert default == first != second

    async def test_two_who_want_the_same_file_share_one_download(self, home: Path) -> None:
        ada, bob = [await database.write(User.objects.create_user, name) for name in ("ada", "bob")]
        first = await downloads.request(REPO, "model.gguf", user=ada)
        assert await downloads.request(REPO, "model.gguf", user=bob) == first

    async def test_one_runs_and_the_next_waits_in_line(self, home: Path) -> None:
        first, second = [await downloads.request(REPO, name) for name in ("model.gguf", "other.gguf")]
        claimed = [await database.write(Job.objects.claim_next, ["download"]) for _ in range(2)]
        assert claimed == [first.job, None]
        await database.write(claimed[0].finish)
        assert await database.write(Job.objects.claim_next, ["download"]) == second.job

    async def test_it_pauses_and_goes_on_from_there(self, runner: JobRunner, hub: HubServer) -> None:
        hub.pause_s = 0.05
        row = await until(await downloads.request(REPO, "model.gguf"), is_under_way)
        await database.write(row.job.pause)
        runner.wake()
        await asyncio.sleep(0.2)
        hub.pause_s = 0
        row = await until_over(await downloads.request(REPO, "model.gguf"))
        assert row.job.state == "complete"
        assert [request.status for request in hub.downloads()] == [200, 206]

    async def test_a_cancelled_one_leaves_nothing(self, runner: JobRunner, hub: HubServer, home: Path) -> None:
        hub.pause_s = 0.05
        row = await until(await downloads.request(REPO, "model.gguf"), is_under_way)
        await downloads.cancel(row)
        await runner.drain(5)
        assert [path.name for path in (home / "models").iterdir()] == ["download.lock"]

    async def test_a_cancelled_one_spares_the_model_that_is_there(self, runner: JobRunner) -> None:
        model = (await until_over(await downloads.request(REPO, "model.gguf"))).model
        await runner.drain(5)
        await downloads.cancel(await downloads.request(REPO, "model.gguf"))
        assert model is not None and Path(model.path).exists()

    async def test_a_refusal_is_the_reason_of_the_job(self, runner: JobRunner, hub: HubServer) -> None:
        row = await downloads.request(REPO, "model.gguf")
        hub.is_gated = True
        row = await until_over(row)
        assert row.job.state == "failed"
        assert "accept the licence" in row.job.error

    async def test_what_is_no_model_is_refused_and_can_be_removed(
        self, runner: JobRunner, hub: HubServer, home: Path
    ) -> None:
        hub.files = {"model.gguf": b"no model"}
        row = await until_over(await downloads.request(REPO, "model.gguf"))
        assert "instead of “GGUF”" in row.job.error
        await downloads.cancel(row)
        assert list((home / "models").glob("*.gguf")) == []

    async def test_offline_asks_nobody(self, hub: HubServer, home: Path, settings: Settings) -> None:
        row = await downloads.request(REPO, "model.gguf")
        hub.requests.clear()
        settings.OFFLINE = True
        for call in (downloads.request(REPO, "model.gguf"), downloads.run(row.job)):
            with pytest.raises(HubError, match="LOCALLLM_OFFLINE"):
                await call
        assert hub.requests == []

    async def test_what_is_here_already_becomes_a_model_without_a_download(
        self, runner: JobRunner, hub: HubServer, home: Path
    ) -> None:
        (home / "models").mkdir()
        (home / f"models/{SHA256}.gguf").write_bytes(STARTER)  # its process was killed while it was tried out
        row = await until_over(await downloads.request(REPO, "model.gguf"))
        assert row.job.state == "complete" and row.model is not None and hub.downloads() == []

    async def test_one_that_another_process_took_over_leaves_its_end_to_that(self, home: Path) -> None:
        job = (await downloads.request(REPO, "model.gguf")).job
        await database.write(job.begin)
        other = await database.read(Job.objects.select_related("download").get, pk=job.pk)
        await database.write(other.run_again)
        await database.write(other.begin)
        assert not await database.write(job.download.advance, job.download.progress)
        assert not await database.write(job.finish)
        assert await database.write(other.download.advance, other.download.progress)
        assert await database.write(other.finish)


# Processes.


def models(home: Path) -> dict[str, str]:
    """The hash of each model by its name."""
    show = "from localllm.gateway.models import LanguageModel as M; print(json.dumps(dict(M.objects.values_list(*F))))"
    done = manage(home, "shell", "-v0", "-c", f"import json; F = ('name', 'sha256'); {show}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def start(home: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"LOCALLLM_HOME": str(home), **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Where the tests run in the background, Ctrl+C is ignored, and children would inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(is_so: Callable[[], Any]) -> None:
    end = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def part_of(home: Path) -> int:
    part = home / f"models/{SHA256}.gguf.part"
    return part.stat().st_size if part.exists() else 0


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("migrated")
    assert manage(home, "migrate", "-v0").returncode == 0
    return home


@pytest.fixture
def used(migrated: Path, tmp_path: Path) -> Path:
    """A data directory whose database is made, which takes longer than all else, and knows no model."""
    return Path(shutil.copytree(migrated, tmp_path, dirs_exist_ok=True))


def test_the_command_downloads_without_a_server(hub: HubServer, used: Path) -> None:
    done = manage(used, "download", REPO, "model.gguf", HF_ENDPOINT=hub.url)
    assert (done.returncode, done.stdout.startswith("model: ")) == (0, True), done.stderr
    assert models(used) == {"model": SHA256}


def test_the_command_goes_on_after_ctrl_c(hub: HubServer, used: Path) -> None:
    hub.pause_s = 0.3
    command = start(used, "download", REPO, "model.gguf", HF_ENDPOINT=hub.url)
    wait_for(lambda: part_of(used) > 300_000)
    command.send_signal(signal.SIGINT)
    assert "The same command goes on from here." in command.communicate()[1]
    hub.pause_s = 0
    assert manage(used, "download", REPO, "model.gguf", HF_ENDPOINT=hub.url).returncode == 0
    assert [request.status for request in hub.downloads()] == [200, 206]


def test_the_command_goes_on_after_it_was_killed(hub: HubServer, used: Path) -> None:
    hub.pause_s = 0.05
    command = start(used, "download", REPO, "model.gguf", HF_ENDPOINT=hub.url)
    wait_for(lambda: part_of(used) > 300_000)
    command.kill()
    command.communicate()
    hub.pause_s = 0
    assert manage(used, "download", REPO, "model.gguf", HF_ENDPOINT=hub.url).returncode == 0
    assert [request.status for request in hub.downloads()] == [200, 206]


def test_two_commands_for_one_file_bring_it_once(hub: HubServer, used: Path) -> None:
    hub.pause_s = 0.5  # the first is at it while the second starts, however busy the machine is
    commands = [start(used, "download", REPO, "model.gguf", HF_ENDPOINT=hub.url)]
    wait_for(lambda: part_of(used) > 300_000)
    commands.append(start(used, "download", REPO, "model.gguf", HF_ENDPOINT=hub.url))
    wait_for(lambda: len(hub.downloads()) == 2)  # it took over
    hub.pause_s = 0
    told = [command.communicate() for command in commands]
    assert [output.startswith("model: ") for output, _ in told] == [True, True], told
    assert [request.status for request in hub.downloads()] == [200, 206]


def test_the_command_draws_a_bar_in_a_terminal(hub: HubServer, used: Path) -> None:
    hub.pause_s = 0.03
    terminal, inside = pty.openpty()
    termios.tcsetwinsize(inside, (24, 100))
    environment = os.environ | {"LOCALLLM_HOME": str(used), "HF_ENDPOINT": hub.url}
    command = subprocess.Popen(
        [sys.executable, "manage.py", "download", REPO, "model.gguf"], cwd=ROOT, env=environment, stderr=inside
    )
    os.close(inside)
    drawn = b""
    with contextlib.suppress(OSError):  # the command has ended, and with it the terminal
        while data := os.read(terminal, 4096):
            drawn += data
    os.close(terminal)
    assert command.wait() == 0
    assert re.search(rb"[1-9]\d?%\|.*M/3\.\d+M \[", drawn), drawn


def test_the_command_says_why_it_failed(hub: HubServer, used: Path) -> None:
    done = manage(used, "download", REPO, "nothing.gguf", HF_ENDPOINT=hub.url)
    assert done.returncode == 1 and "Its GGUF files: model.gguf, other.gguf." in done.stderr
    done = manage(used, "download", REPO, "model.gguf", HF_ENDPOINT=hub.url, LOCALLLM_OFFLINE="1")
    assert done.returncode == 1 and "LOCALLLM_OFFLINE is set" in done.stderr


def test_no_log_and_no_error_shows_the_token(hub: HubServer, used: Path) -> None:
    hub.is_gated = True
    done = manage(
        used,
        "download",
        REPO,
        "model.gguf",
        HF_ENDPOINT=hub.url,
        HF_TOKEN="hf_mine",
        HF_DEBUG="1",
        LOG_LEVEL="DEBUG",
    )
    assert "check that HF_TOKEN is a valid token" in done.stderr
    assert "hf_mine" not in done.stdout + done.stderr


def test_a_killed_server_goes_on_where_it_was(hub: HubServer, tmp_path: Path) -> None:
    hub.pause_s = 0.1
    with Server(tmp_path, HF_ENDPOINT=hub.url) as server:
        command = start(tmp_path, "download", REPO, "model.gguf", HF_ENDPOINT=hub.url)
        wait_for(lambda: part_of(tmp_path) > 300_000)
        server.kill()
        assert "The server ended." in command.communicate()[1]
        hub.pause_s = 0
        server.start()
        done = server.manage("download", REPO, "model.gguf")  # shows how far the server is
        assert done.stdout.startswith("model: "), done.stderr
    assert [request.status for request in hub.downloads()] == [200, 206]


def test_a_full_disk_fails_the_job_of_a_server_which_goes_on_when_there_is_room(hub: HubServer, tmp_path: Path) -> None:
    with Server(tmp_path, HF_ENDPOINT=hub.url) as server:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (2_500_000, resource.RLIM_INFINITY))
        done = server.manage("download", REPO, "model.gguf")
        assert done.returncode == 1 and "is full. What came so far is kept" in done.stderr
        assert part_of(tmp_path) == 2_500_000 and server.health()[0] == 200
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        done = server.manage("download", REPO, "model.gguf")
        assert done.stdout.startswith("model: "), done.stderr
    assert hub.downloads()[-1].headers["range"] == "bytes=2500000-"
