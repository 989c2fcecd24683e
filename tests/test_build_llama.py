"""deploy/build_llama.py with compilers that are scripts: the flags for each, and what a kept wheel depends on."""

import importlib.util
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[1] / "deploy/build_llama.py"
# Asked for its macros it names its version and CPU, else it says whether it lacks the mended builtin.
COMPILER = """#!/bin/sh
case "$*" in
  *-dM*) echo '#define __VERSION__ "{version}"'; echo '#define __CPU__ "{cpu}"';;
  *) cat >/dev/null; echo "{has_bug}";;
esac
"""


@pytest.fixture
def build_llama():
    spec = importlib.util.spec_from_file_location("build_llama", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def path(tmp_path, monkeypatch):
    """The only folder with programs, beside the system's own shell; no variable steers the build."""
    for name in ("CC", "CXX", "CUDACXX", "CFLAGS", "CXXFLAGS", "CMAKE_ARGS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "cat").symlink_to("/bin/cat")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def install(path, *names, version="12.2", cpu="znver4", has_bug=False):
    for name in names:
        text = COMPILER.format(version=version, cpu=cpu, has_bug="yes" if has_bug else "")
        (path / name).write_text(text)
        (path / name).chmod(0o755)


def key(build_llama, gpu=""):
    return build_llama.build_environment(gpu)[1]


@pytest.mark.parametrize("has_bug", [True, False])
def test_amx_is_left_out_where_the_compiler_breaks_it(build_llama, path, has_bug):
    install(path, "gcc", "g++", has_bug=has_bug)
    env, _ = build_llama.build_environment("")
    assert env["CFLAGS"] == env["CXXFLAGS"] == (build_llama.NO_AMX if has_bug else "")


def test_each_of_two_compilers_is_asked(build_llama, path):
    install(path, "gcc")
    install(path, "g++", has_bug=True)
    env, _ = build_llama.build_environment("")
    assert (env["CFLAGS"], env["CXXFLAGS"]) == ("", build_llama.NO_AMX)


def test_the_flags_of_the_user_come_first_and_stay(build_llama, path, monkeypatch):
    install(path, "gcc", "g++", has_bug=True)
    monkeypatch.setenv("CFLAGS", "-O2")
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_BLAS=on")
    env, _ = build_llama.build_environment("")
    assert env["CFLAGS"] == f"-O2 {build_llama.NO_AMX}"
    assert env["CMAKE_ARGS"] == "-DGGML_BLAS=on -DLLAVA_BUILD=OFF"


def test_the_compiler_that_is_named_is_taken_before_those_that_are_there(build_llama, path, monkeypatch):
    install(path, "gcc", "g++", "clang", "gcc-14")
    monkeypatch.setenv("CC", "gcc-14")
    env, _ = build_llama.build_environment("")
    assert (env["CC"], env["CXX"]) == ("gcc-14", "g++")


def test_where_there_is_no_compiler_it_says_what_to_install(build_llama, path):
    with pytest.raises(SystemExit, match=r"looked for gcc or cc or clang.*build-essential"):
        build_llama.build_environment("")


def test_the_key_is_the_same_for_the_same_and_another_for_each_thing_that_shapes_a_wheel(
    build_llama, path, monkeypatch
):
    install(path, "gcc", "g++")
    keys = [key(build_llama)]
    assert key(build_llama) == keys[0]
    for change in ({"version": "14.1"}, {"cpu": "sapphirerapids"}, {"has_bug": True}):
        install(path, "gcc", "g++", **change)
        keys.append(key(build_llama))
    install(path, "gcc", "g++", "nvcc")
    keys.append(key(build_llama, gpu="cuda"))
    for name in ("CFLAGS", "CXXFLAGS", "CMAKE_ARGS"):
        monkeypatch.setenv(name, "-DNEW")
        keys.append(key(build_llama))
    assert len({*keys}) == len(keys) == 8
