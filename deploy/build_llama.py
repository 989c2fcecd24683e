"""Builds llama-cpp-python from its locked source for this compiler and CPU, installs it, decodes with it.

A finished wheel is kept outside the tree, under a key made of all that shaped it: each machine compiles
once. Run by the Makefile with the environment's Python; knows nothing of the application.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements-llama.txt"
TOOLS = ROOT / "requirements-build.txt"
STARTER = ROOT / "localllm/gateway/data/starter.gguf"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "localllm"

# Until 11.5, 12.4 and 13.3 GCC told its optimiser that `ldtilecfg` reads 8 of its 64 bytes, so on a CPU
# with AMX the first decode segfaults. The mended ones have a builtin for it.
# https://gcc.gnu.org/bugzilla/show_bug.cgi?id=114098
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
HAS_AMX_BUG = """
#if defined(__x86_64__) && !defined(__clang__) && !__has_builtin(__builtin_ia32_ldtilecfg)
yes
#endif
"""

DECODE_TWO_TOKENS = """
import sys, llama_cpp
llm = llama_cpp.Llama(sys.argv[1], n_ctx=64, n_gpu_layers=-1, verbose=False)
assert llm("Hello", max_tokens=2)["usage"]["completion_tokens"] > 0
"""


def main() -> None:
    version = re.findall(r"^llama-cpp-python==(\S+)", LOCK.read_text(), re.MULTILINE)[0]
    env, key = build_environment(gpu=os.environ.get("GPU", ""))
    folder = CACHE / f"{version}-{key}"
    wheel = next(folder.glob("*.whl"), None)
    if wheel is None:
        print(f"Building llama.cpp (llama-cpp-python {version}) with {env['CXX']} for this machine.")
        print("This takes 3 to 10 minutes, and happens once.", flush=True)
        wheel = build(folder, env)
    print(f"Installing {wheel}", flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--force-reinstall"]
    subprocess.run([*pip, str(wheel)], check=True)
    prove(wheel)


def build_environment(gpu: str) -> tuple[dict[str, str], str]:
    """The variables that steer CMake, after what the user has set in them, and a key of all that matters."""
    if gpu not in ("", "cuda"):
        sys.exit(f"GPU is {gpu!r}, but only GPU=cuda is known; leave it out to build for the CPU.")
    env = {**os.environ, "CC": find("CC", "gcc", "cc", "clang"), "CXX": find("CXX", "g++", "c++", "clang++")}
    env.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(num_jobs()))
    chosen = {
        "CFLAGS": amx_flags(env["CC"]),
        "CXXFLAGS": amx_flags(env["CXX"]),
        "CMAKE_ARGS": "-DLLAVA_BUILD=OFF",
    }
    facts = cpu_macros(env["CC"]) + cpu_macros(env["CXX"])
    if gpu:
        env["CUDACXX"] = find("CUDACXX", "nvcc", "/usr/local/cuda/bin/nvcc")
        chosen["CMAKE_ARGS"] += " -DGGML_CUDA=on"
        facts += subprocess.check_output([env["CUDACXX"], "--version"], text=True)
    for name, flags in chosen.items():
        env[name] = f"{env.get(name, '')} {flags}".strip()
        facts += f"{name}={env[name]}\n"
    return env, hashlib.sha256(facts.encode()).hexdigest()[:16]


def find(variable: str, *names: str) -> str:
    """The compiler named by the environment variable, else the first of `names` that is installed."""
    wanted = (os.environ[variable],) if os.environ.get(variable) else names
    if found := next(filter(shutil.which, wanted), None):
        return found
    sys.exit(
        f"No compiler found: looked for {' or '.join(wanted)}. Install one (on Debian or Ubuntu: apt install"
        f" build-essential; for GPU=cuda also the CUDA toolkit) or name yours in {variable}."
    )


def num_jobs() -> int:
    """One compiler a core, as far as there is a GiB of memory for each."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30
    return max(1, min(os.cpu_count() or 1, gib))


def amx_flags(compiler: str) -> str:
    command = [compiler, "-mamx-tile", "-E", "-P", "-x", "c", "-"]
    answer = subprocess.run(command, input=HAS_AMX_BUG, capture_output=True, text=True)
    return NO_AMX if answer.stdout.strip() == "yes" else ""


def cpu_macros(compiler: str) -> str:
    """What the compiler defines when it builds for this very CPU: its version and the instruction sets."""
    command = [compiler, "-dM", "-E", "-x", "c", os.devnull]
    native = subprocess.run([*command, "-march=native"], capture_output=True, text=True)
    return native.stdout or subprocess.check_output(command, text=True)


def build(folder: Path, env: dict[str, str]) -> Path:
    """Compile in a throw-away folder beside the cache, and move only a finished wheel into it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="build-") as work:
        venv.create(f"{work}/tools", with_pip=True)
        pip = [f"{work}/tools/bin/python", "-u", "-m", "pip", "--no-cache-dir"]
        locked = ["--require-hashes", "--requirement"]
        subprocess.run([*pip, "install", "--quiet", *locked, str(TOOLS)], check=True)
        from_source = ["--no-binary", "llama-cpp-python", "--no-deps", "--no-build-isolation", "--verbose"]
        command = [*pip, "wheel", *from_source, *locked, str(LOCK), "--wheel-dir", work]
        if follow(command, {**env, "TMPDIR": work}, log=folder / "build.log"):
            sys.exit(f"llama-cpp-python did not build: see the lines above, or the whole {folder}/build.log.")
        wheel = next(Path(work).glob("*.whl"))
        return wheel.replace(folder / wheel.name)


def follow(command: list[str], env: dict[str, str], log: Path) -> int:
    """Run with all output in the log, and on the screen every tenth step, or the end of a failure."""
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        for line in process.stdout or ():
            file.write(line)
            if re.match(r"\s*(\[\d*0/|\[(\d+)/\2\]|Downloading|\*\*\* )", line):
                print(" ", re.sub(r"(\[\d+/\d+\]).*", r"llama.cpp \1", line.strip()), flush=True)
    if process.wait():
        print(*log.read_text().splitlines()[-25:], sep="\n")
    return process.wait()


def prove(wheel: Path) -> None:
    """Decode two tokens in a process that may crash."""
    command = [sys.executable, "-c", DECODE_TWO_TOKENS, str(STARTER)]
    code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    if code:
        end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        sys.exit(
            f"llama.cpp was built and installed, but decoding two tokens with {STARTER.name} ended in {end}."
            f" Try another compiler, as in `CC=gcc-14 CXX=g++-14 make run`; to build once more with the same"
            f" one, remove {wheel.parent} first."
        )
    print("llama.cpp works: the starter model has answered.", flush=True)


if __name__ == "__main__":
    main()
