"""llama.cpp's own programs, built from the source of the very llama-cpp-python that serves here.

Same source, same compiler, same flags: what differs in a comparison is then what we wrote. Knows how to
fetch, build and start them; measures nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

from deploy.build_llama import LOCK, ROOT, TOOLS, build_environment, follow, num_jobs

BUILD = ROOT / "var/build/llama.cpp"
PROGRAMS = ("llama-server", "llama-bench")
# Release, as scikit-build-core builds the wheel; the rest leaves out what the two programs do not need.
# The web page of llama-server would be downloaded while building.
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
)
START_LIMIT_S = 120


def program(name: str) -> Path:
    """The path of llama-server or llama-bench, built first if need be: about ten minutes on two cores."""
    env, key = build_environment(gpu=os.environ.get("GPU", ""))
    folder = BUILD / key
    if not all((folder / "bin" / each).exists() for each in PROGRAMS):
        print(f"Building {' and '.join(PROGRAMS)} in {folder}: about ten minutes, once.", flush=True)
        _build(source(), folder, env)
    return folder / "bin" / name


def source() -> Path:
    """The unpacked sdist of llama-cpp-python; llama.cpp lies in its vendor folder."""
    (version,) = re.findall(r"^llama-cpp-python==(\S+)", LOCK.read_text(), re.MULTILINE)
    folder = BUILD / f"llama_cpp_python-{version}"
    if not folder.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        # pip asks the build backend for the sdist's metadata, so the tools have to be there for a download.
        pip = [_tool("python"), "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        sdist = ["--no-binary", "llama-cpp-python", "--require-hashes", "--requirement", str(LOCK)]
        subprocess.run([*pip, *sdist, "--dest", str(BUILD)], check=True)
        (archive,) = BUILD.glob(f"llama_cpp_python-{version}.tar.gz")
        with tarfile.open(archive) as tar, tempfile.TemporaryDirectory(dir=BUILD) as partial:
            tar.extractall(partial, filter="data")
            (Path(partial) / folder.name).rename(folder)
    return folder


def _tool(name: str) -> str:
    """Python, CMake or Ninja, as the wheel is built with, away from .venv."""
    folder = BUILD / "tools"
    if not (folder / "bin/cmake").exists():
        venv.create(folder, with_pip=True)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--require-hashes"]
        subprocess.run([*pip, "--requirement", str(TOOLS)], check=True)
    return str(folder / "bin" / name)


def _build(source: Path, folder: Path, env: dict[str, str]) -> None:
    options = [*OPTIONS, f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}", *shlex.split(env["CMAKE_ARGS"])]
    folders = ["-S", str(source / "vendor/llama.cpp"), "-B", str(folder)]
    configure = [_tool("cmake"), "-G", "Ninja", *folders, *options]
    compile = [_tool("cmake"), "--build", str(folder), "--parallel", str(num_jobs()), "--target", *PROGRAMS]
    for command in (configure, compile):
        if code := follow(command, env, log=BUILD / f"{folder.name}.log"):
            sys.exit(f"llama.cpp's own programs did not build (exit code {code}): see {BUILD}/{folder.name}.log.")


def command_line(command: list[str]) -> str:
    """As it could be typed in the repository's root."""
    return shlex.join(part.removeprefix(f"{ROOT}/") for part in command)


def server_command(model: Path, *, num_slots: int, window: int, num_threads: int) -> list[str]:
    """llama-server with as many slots as our engine, each with a window of its own."""
    sizes = {"-np": num_slots, "-c": num_slots * window, "-t": num_threads, "-b": 512, "-ub": 512}
    numbers = [str(part) for pair in sizes.items() for part in pair]
    return [str(program("llama-server")), "-m", str(model), *numbers, "--no-ui"]


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[str]:
    """Run llama-server on a free port, and give its address when it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    arguments = [*command, "--host", "127.0.0.1", "--port", str(port), "--log-disable"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"{url}/health", process)
        yield url
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"llama-server ended with code {process.returncode}; it was expected to serve.")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):  # refused, or 503
            return
        time.sleep(0.1)
    raise SystemExit(f"llama-server was not ready after {START_LIMIT_S} s.")


def bench_command(model: Path, *, num_threads: int, depth: int, num_tokens: int) -> list[str]:
    """llama-bench for so many tokens after a prompt of `depth` tokens."""
    numbers = {"-t": num_threads, "-p": 0, "-n": num_tokens, "-d": depth, "-r": 1}
    arguments = [str(part) for pair in numbers.items() for part in pair]
    return [str(program("llama-bench")), "-m", str(model), *arguments]


def bench(command: list[str]) -> float:
    """Tokens per second."""
    output = subprocess.run([*command, "-o", "json"], capture_output=True, check=True, text=True).stdout
    return float(json.loads(output)[0]["avg_ts"])
