"""What scripts rely on: serve, createapikey, registermodel and /health, on real processes."""

from __future__ import annotations

import re
import shutil
import sqlite3
import stat
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from http.cookies import SimpleCookie
from pathlib import Path

import pytest
from openai import OpenAI

from tests.server import PASSWORD, ROOT, Server, manage

STARTER = ROOT / "localllm/gateway/data/starter.gguf"
NO_ADMIN = {"DJANGO_SUPERUSER_USERNAME": ""}


def model_names(server: Server) -> list[str]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.make_key(), max_retries=0) as client:
        return [model.id for model in client.models.list()]


def answering_model(server: Server) -> str:
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.make_key(), max_retries=0) as client:
        message = {"role": "user", "content": "Hello"}
        return client.chat.completions.create(model="default", messages=[message], max_tokens=1).model  # type: ignore[list-item]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Another model, as far as anybody can tell."""
    return Path(shutil.copy(STARTER, tmp_path / "Another Model.gguf"))


# createapikey


def test_a_key_can_be_made_before_the_first_start_and_is_all_that_is_printed(tmp_path: Path) -> None:
    admin = {"DJANGO_SUPERUSER_USERNAME": "ada", "DJANGO_SUPERUSER_PASSWORD": PASSWORD}
    done = manage(tmp_path / "new", "createapikey", "laptop", **admin)
    assert done.returncode == 0 and re.fullmatch(r"sk-[\w-]{43}\n", done.stdout), done.stderr


def test_without_an_admin_it_says_how_to_make_one(tmp_path: Path) -> None:
    done = manage(tmp_path, "createapikey", "laptop")
    assert (done.returncode, done.stdout) == (1, "") and "first account" in done.stderr


def test_a_key_for_nobody_is_refused(server: Server) -> None:
    done = server.manage("createapikey", "laptop", "--user", "nobody")
    assert done.returncode == 1 and "'nobody'" in done.stderr


# registermodel


def test_a_running_server_sees_a_model_that_is_registered_beside_it(tmp_path: Path, copy: Path) -> None:
    with Server(tmp_path / "home") as server:
        done = server.manage("registermodel", str(copy), "--default")
        assert done.returncode == 0 and done.stdout.startswith("another-model (the default model)")
        assert model_names(server) == ["default", "another-model", "starter"]
        assert answering_model(server) == "another-model"
        assert copy.exists() and not list(server.home.rglob("*.gguf"))  # it stayed where it was


@pytest.mark.parametrize("content", [STARTER.read_bytes()[:100_000], b"not a model" * 1000])
def test_a_file_that_is_no_model_is_refused_with_the_reason(server: Server, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.gguf").write_bytes(content)
    done = server.manage("registermodel", str(tmp_path / "broken.gguf"))
    assert done.returncode == 1 and "broken.gguf" in done.stderr and "Traceback" not in done.stderr
    assert server.health()[0] == 200


def test_a_file_that_is_not_there_is_refused_with_the_reason(server: Server) -> None:
    done = server.manage("registermodel", "/nowhere.gguf")
    assert done.returncode == 1 and "nowhere.gguf" in done.stderr and "Traceback" not in done.stderr


# serve


def test_it_makes_a_data_directory_that_only_its_owner_can_read(server: Server) -> None:
    assert stat.S_IMODE(server.home.stat().st_mode) == 0o700
    assert stat.S_IMODE((server.home / "localllm.sqlite3").stat().st_mode) == 0o600


def test_the_database_is_in_write_ahead_mode_and_stays_open(server: Server) -> None:
    with closing(sqlite3.connect(server.home / "localllm.sqlite3")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert (server.home / "localllm.sqlite3-wal").exists()


def test_a_second_server_on_the_same_data_is_refused(server: Server) -> None:
    done = server.manage("serve")
    assert done.returncode == 1 and f"process {server.pid}" in done.stderr and "LOCALLLM_HOME" in done.stderr


@pytest.mark.parametrize("hosts", [{}, {"LOCALLLM_ALLOWED_HOSTS": "*"}])
def test_it_does_not_open_to_others_without_knowing_its_names(tmp_path: Path, hosts: dict[str, str]) -> None:
    done = manage(tmp_path, "serve", HOST="0.0.0.0", PORT="0", **hosts)
    assert done.returncode == 1 and "LOCALLLM_ALLOWED_HOSTS=" in done.stderr


def test_a_second_start_tries_nothing_out_again(tmp_path: Path, copy: Path) -> None:
    with Server(tmp_path / "home", is_new=True, LOCALLLM_MODEL=str(copy)) as server:
        assert server.log.count("Trying") == 2 and answering_model(server) == "another-model"
        server.stop()
        server.start()
        assert server.log.count("Trying") == 2 and answering_model(server) == "another-model"


def test_a_refused_model_is_reported_and_the_old_default_goes_on(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(STARTER.read_bytes()[:50_000])
    with Server(tmp_path / "home", LOCALLLM_MODEL=str(tmp_path / "broken.gguf")) as server:
        assert "broken.gguf" in server.log.partition("Trying broken.gguf")[2]
        assert server.health()[1]["model"] == "starter"


def test_health_tells_when_the_default_model_cannot_answer(tmp_path: Path, copy: Path) -> None:
    with Server(tmp_path / "home", LOCALLLM_MODEL=str(copy)) as server:
        server.stop()
        copy.unlink()
        server.start(until_ready=False)
        status, body = server.health()
        assert status == 503 and body["ready"] is False and str(copy) in str(body["message"])


# check --deploy


def test_behind_https_a_deployment_has_no_warnings(tmp_path: Path) -> None:
    done = manage(tmp_path, "check", "--deploy", "--fail-level", "WARNING", LOCALLLM_HTTPS="1")
    assert done.returncode == 0, done.stderr


def test_without_https_the_warnings_are_about_https_alone(tmp_path: Path) -> None:
    done = manage(tmp_path, "check", "--deploy")
    assert set(re.findall(r"security\.W\d+", done.stderr)) == {f"security.W{n}" for n in ("004", "008", "012", "016")}


def test_behind_https_browsers_are_told_to_stay_with_it(tmp_path: Path) -> None:
    with Server(tmp_path / "home", LOCALLLM_HTTPS="1") as server:  # its start asks /health over plain HTTP
        for path in ("/login/", "/v1/models"):
            with closing(HTTPConnection("127.0.0.1", server.port, timeout=30)) as proxy:
                proxy.request("GET", path)
                assert proxy.getresponse().headers["Strict-Transport-Security"] == "max-age=2592000"


# The first account, on a server that others reach through a proxy


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    hosts = {"LOCALLLM_ALLOWED_HOSTS": "llm.example.org"}
    with Server(tmp_path_factory.mktemp("exposed"), **NO_ADMIN, **hosts) as server:
        yield server


def make_first_account(server: Server, name: str, code: str) -> int:
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=30)) as browser:
        browser.request("GET", "/setup/")
        response = browser.getresponse()
        token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', response.read().decode())
        assert token
        form = {"username": name, "password1": PASSWORD, "password2": PASSWORD, "code": code}
        body = urllib.parse.urlencode(form | {"csrfmiddlewaretoken": token[1]})
        headers = {"Cookie": _cookies(response), "Content-Type": "application/x-www-form-urlencoded"}
        browser.request("POST", "/setup/", body, headers)
        return browser.getresponse().status


def _cookies(response: HTTPResponse) -> str:
    cookies = SimpleCookie(response.headers["Set-Cookie"])
    return "; ".join(f"{name}={morsel.value}" for name, morsel in cookies.items())


def test_of_many_at_once_one_becomes_the_admin(exposed: Server) -> None:
    code = re.search(r"asks for this code: (\w+)", exposed.log)
    assert code and make_first_account(exposed, "eve", "wrong") == 200
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: make_first_account(exposed, f"user{n}", code[1]), range(4)))
    with closing(sqlite3.connect(exposed.home / "localllm.sqlite3")) as database:
        assert database.execute("SELECT COUNT(*) FROM auth_user").fetchone() == (1,)
