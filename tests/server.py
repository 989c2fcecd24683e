"""A real server process for tests: `manage.py serve` on a data directory of its own and a free port."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from types import TracebackType

import pytest

ROOT = Path(__file__).resolve().parent.parent
ADMIN, PASSWORD = "ada", "correct horse battery"
START_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0
NO_HUB = "http://127.0.0.1:9"  # nobody listens there: tests ask no public hub
MOMENT_S = 0.01
MEASURED = "SELECT 1 FROM gateway_languagemodel WHERE measured_at IS NOT NULL"


def collect_static() -> None:
    """Pages need the manifest of static files, which `make run` makes."""
    subprocess.run([sys.executable, "manage.py", "collectstatic", "--noinput", "--verbosity=0"], cwd=ROOT, check=True)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it running."""
    with Server(tmp_path_factory.mktemp("home"), is_new=True) as running:
        yield running


@cache
def used_home() -> Path:
    """A data directory whose database is made, and whose starter model is tried out and measured; without an account.

    Servers of tests begin on a copy of it: each would make the same first, which takes longer than most tests.
    """
    server = Server(Path(os.environ["LOCALLLM_HOME"]) / "used-home", is_new=True, DJANGO_SUPERUSER_USERNAME="")
    with server:
        server._wait(server.has_measured_starter)
    return server.home


class Server:
    """One life after another of a server on `home`: start, stop or kill, start again on the same port.

    An admin `ADMIN` with `PASSWORD` is there unless `environment` names another, or none ("").
    The first start finds a data directory that has been used, unless `is_new`.
    """

    def __init__(self, home: Path, *, program: str = "manage.py", is_new: bool = False, **environment: str) -> None:
        self.home = home
        self.program = program
        self.is_new = is_new
        self.port = 0  # chosen by the first start
        self.environment = {
            "DJANGO_SUPERUSER_USERNAME": ADMIN,
            "DJANGO_SUPERUSER_PASSWORD": PASSWORD,
            "HF_ENDPOINT": NO_HUB,
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self._log = home / "test-server.log"

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def database(self) -> Path:
        return self.home / "localllm.sqlite3"

    def has_measured_starter(self) -> bool:
        with closing(sqlite3.connect(self.database)) as database:
            return database.execute(MEASURED).fetchone() is not None

    @property
    def log(self) -> str:
        """All that every life so far has printed."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def worker_pids(self) -> list[int]:
        """The engine's processes that this life has now."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        children = [int(pid) for task in tasks for pid in _read(task / "children").split()]
        return [pid for pid in children if b"engine.worker" in _read(Path(f"/proc/{pid}/cmdline"))]

    # The starter model is quick: to see an answer half-way, its process is stopped, and let run for moments.

    def pause(self) -> None:
        self._signal_worker(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal_worker(signal.SIGCONT)

    def run_for_a_moment(self) -> None:
        self.go_on()
        time.sleep(MOMENT_S)
        self.pause()

    def _signal_worker(self, number: signal.Signals) -> None:
        (pid,) = self.worker_pids
        os.kill(pid, number)

    def make_home(self) -> None:
        """Make a data directory that has been used."""
        shutil.copytree(used_home(), self.home, ignore=shutil.ignore_patterns("*.log"), dirs_exist_ok=True)

    def start(self, *, until_ready: bool = True) -> None:
        """Start, and wait for /health to say ready, or only for the port to be open."""
        if not self.is_new and not self.database.exists():
            self.make_home()
        self.home.mkdir(parents=True, exist_ok=True)
        already_said = len(self.log)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, self.program, "serve"],
                cwd=ROOT,
                env=self._environment() | {"PORT": str(self.port)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wait(lambda: re.search(r"ready at http://\S+:(\d+)", self.log[already_said:]) is not None)
        self.port = int(re.findall(r"ready at http://\S+:(\d+)", self.log)[-1])
        if until_ready:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        self._wait(lambda: self.health()[0] == 200)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, and wait; its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_LIMIT_S)

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def health(self) -> tuple[int, dict[str, object]]:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=10) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of manage.py on the same data directory."""
        return manage(self.home, *arguments, **self.environment)

    def make_key(self, name: str = "test", user: str | None = None) -> str:
        done = self.manage("createapikey", name, *(["--user", user] if user else []))
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _environment(self) -> dict[str, str]:
        return _environment(self.home, self.environment)

    def _wait(self, is_so: Callable[[], bool], limit_s: float = START_LIMIT_S) -> None:
        assert self.process is not None
        end = time.monotonic() + limit_s
        while not is_so():
            assert self.process.poll() is None, f"The server ended with {self.process.returncode}:\n{self.log}"
            assert time.monotonic() < end, f"The server is not ready after {limit_s} s:\n{self.log}"
            time.sleep(0.05)


def _read(path: Path) -> bytes:
    """A file of a thread or process, which may have ended since it was listed."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def manage(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=_environment(home, environment),
        capture_output=True,
        text=True,
        timeout=START_LIMIT_S,
        check=False,
    )


def _environment(home: Path, own: dict[str, str]) -> dict[str, str]:
    """Nothing of the settings of whoever runs the tests."""
    foreign = ("HOST", "PORT", "DJANGO_SUPERUSER_", "LOCALLLM_", "HF_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return inherited | {"LOCALLLM_HOME": str(home), "PYTHONUNBUFFERED": "1"} | own
