"""What a model takes is told from its header, and judged against what the machine has."""

import os
import re
import struct
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from localllm.inference.engine.gguf import Header, fetch_header, read_header
from localllm.inference.engine.host import EngineHost
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.errors import ModelRefused
from localllm.inference.memory import MIN_WINDOW, Machine, account, fit, largest_window, this_machine
from localllm.inference.shapes import Shape
from tests.hub import REPO, HubServer
from tests.inference.test_gguf import (
    ARCHITECTURE,
    CONTEXT,
    DATA,
    KEYS,
    SHAPE,
    TENSORS,
    TOKENS,
    U32,
    array,
    build,
    number,
    tensor,
    text,
)

STARTER = Path(__file__).parents[2] / "localllm/gateway/data/starter.gguf"
GB = 10**9
QWEN_7B = Shape(
    architecture="qwen2",
    num_layers=28,
    width=3584,
    num_heads=28,
    num_kv_heads=4,
    head_length=128,
    feed_forward=18944,
    vocab_size=152064,
    is_tied=False,
).header("Qwen2.5 7B", "Q4_K_M", 32768)
DEFAULTS = EngineSettings()


def machine(gigabytes: float, *cpu_flags: str, num_cpus: int = 0, gpu: float = 0) -> Machine:
    total = int(gigabytes * GB)
    return Machine(
        total_bytes=total,
        available_bytes=total,
        cpu_flags=frozenset(cpu_flags),
        num_cpus=num_cpus,
        gpu_bytes=int(gpu * GB),
    )


def header(path: Path, content: bytes) -> Header:
    path.write_bytes(content)
    return read_header(path)


# The account


async def test_it_foretells_what_a_worker_takes() -> None:
    settings = EngineSettings(n_ctx=1024)
    host = EngineHost(STARTER, settings)
    host.start()
    try:
        await host.wait_until_ready()
        status = Path(f"/proc/{host.pid}/status").read_text()
    finally:
        await host.stop()
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    need = account(read_header(STARTER), settings, this_machine())
    assert need.peak_bytes - need.compute_bytes == pytest.approx(int(kilobytes) * 1024, rel=0.15)


def test_it_counts_the_kv_cache_of_all_slots() -> None:
    need = account(read_header(STARTER), EngineSettings(n_ctx=1024, num_slots=4), machine(8))
    assert need.kv_bytes == 4 * 1024 * 6 * 3 * (32 + 32) * 2  # as llama.cpp reports it: 9.00 MiB


def test_it_counts_a_quantised_cache_as_smaller() -> None:
    full, small = (account(QWEN_7B, EngineSettings(kv_type=kind), machine(8)) for kind in ("f16", "q8_0"))
    assert small.kv_bytes == full.kv_bytes * 34 // 64


def test_it_counts_a_window_no_longer_than_the_trained_one() -> None:
    assert account(read_header(STARTER), EngineSettings(n_ctx=8192), machine(8)).window == 1024


def test_it_counts_copies_of_weights_where_the_cpu_wants_its_own_order() -> None:
    plain, repacked = (account(QWEN_7B, DEFAULTS, machine(8, flag)) for flag in ("sse2", "avx2"))
    assert plain.repacked_bytes == 0
    copied = sum(t.num_bytes for t in QWEN_7B.tensors if t.type == "Q4_K" and t.name != "token_embd.weight")
    assert repacked.peak_bytes - plain.peak_bytes == repacked.repacked_bytes == copied


def test_it_counts_one_copy_where_the_file_is_not_mapped() -> None:
    need = account(QWEN_7B, EngineSettings(use_mmap=False), machine(8, "avx2"))
    assert need.peak_bytes == need.held_bytes == need.used_bytes


def test_it_counts_what_a_mapped_file_can_give_back() -> None:
    need = account(QWEN_7B, DEFAULTS, machine(8))
    assert need.held_bytes == need.peak_bytes - QWEN_7B.tensor_bytes
    locked = account(QWEN_7B, EngineSettings(use_mlock=True), machine(8))
    assert locked.held_bytes == locked.peak_bytes


def test_it_counts_the_scores_of_all_heads_without_flash_attention() -> None:
    on, off = (account(QWEN_7B, EngineSettings(flash_attention=each), machine(8)) for each in ("on", "off"))
    assert on.compute_bytes < 512 * 4096 * 28 * 4 < off.compute_bytes


def test_it_counts_no_cache_for_layers_without_attention(tmp_path: Path) -> None:
    per_layer = array("llama.attention.head_count_kv", U32, 2, struct.pack("<2I", 0, 2))
    mixed = header(tmp_path / "mixed.gguf", build([*KEYS, per_layer]))
    assert mixed.kv_heads == (0, 2)
    assert account(mixed, DEFAULTS, machine(8)).kv_bytes == 4 * 2048 * 2 * (64 + 64) * 2


def test_it_counts_the_states_of_recurrent_layers(tmp_path: Path) -> None:
    sizes = {"conv_kernel": 4, "inner_size": 512, "state_size": 16}
    states = [number(f"mamba.ssm.{name}", size) for name, size in sizes.items()]
    shape = [number("mamba.context_length", 2048), number("mamba.block_count", 2)]
    keys = [text("general.architecture", "mamba"), *shape, number("mamba.embedding_length", 256), *states, TOKENS]
    recurrent = header(tmp_path / "mamba.gguf", build(keys))
    assert account(recurrent, DEFAULTS, machine(8)).kv_bytes == 4 * 2 * (3 * 512 + 16 * 512) * 4


def with_gpu(gigabytes: float) -> Machine:
    return replace(machine(8), gpu_bytes=int(gigabytes * GB))


def test_it_places_all_of_a_model_on_a_gpu_that_has_room() -> None:
    need, alone = account(QWEN_7B, DEFAULTS, with_gpu(24)), account(QWEN_7B, DEFAULTS, machine(8))
    (embeddings,) = (tensor.num_bytes for tensor in QWEN_7B.tensors if tensor.name == "token_embd.weight")
    assert (need.num_gpu_layers, need.weights_bytes, need.kv_bytes) == (29, embeddings, 0)
    assert need.gpu_bytes + embeddings == alone.weights_bytes + alone.kv_bytes + alone.compute_bytes


def test_it_places_as_many_layers_on_a_gpu_as_fit() -> None:
    need, alone = account(QWEN_7B, DEFAULTS, with_gpu(3)), account(QWEN_7B, DEFAULTS, machine(8))
    layer = (alone.weights_bytes + alone.kv_bytes) / 29
    assert 5 < need.num_gpu_layers < 28 and 3 * GB - 1.5 * layer < need.gpu_bytes <= 3 * GB
    on_both = need.weights_bytes + need.kv_bytes + need.gpu_bytes - need.compute_bytes
    assert on_both == alone.weights_bytes + alone.kv_bytes


@pytest.mark.parametrize(("wanted", "placed"), [(0, 0), (4, 4), (99, 29)])
def test_it_keeps_to_the_layers_that_were_asked_for(wanted: int, placed: int) -> None:
    assert account(QWEN_7B, EngineSettings(n_gpu_layers=wanted), with_gpu(24)).num_gpu_layers == placed


@pytest.mark.parametrize(("gpu", "told"), [(None, -1), (0, 0), (int(0.1 * GB), 0), (24 * GB, 29)])
def test_it_names_the_layers_where_a_gpu_has_a_memory_of_its_own(gpu: int | None, told: int) -> None:
    here = replace(machine(8), gpu_bytes=gpu)
    assert account(QWEN_7B, DEFAULTS, here).settings == EngineSettings(n_gpu_layers=told)


def test_it_says_what_lies_on_the_gpu() -> None:
    assert "graphics memory for 29 layers" in str(fit(QWEN_7B, DEFAULTS, with_gpu(24)))


def test_it_counts_no_cache_for_encoders() -> None:
    assert account(replace(QWEN_7B, architecture="nomic-bert-moe"), DEFAULTS, machine(8)).kv_bytes == 0


# The verdict


@pytest.mark.parametrize(
    ("gigabytes", "verdict", "says"),
    [
        (16, "fits", "Fits: it needs 5.9 GB of the 12.8 GB that are free for models."),
        (7, "smaller context", "Fits with a context of up to 2,560 tokens"),
        (6, "slow", "Will be slow"),
        (4, "does not fit", "Does not fit"),
    ],
)
def test_it_says_whether_a_model_fits(gigabytes: int, verdict: str, says: str) -> None:
    found = fit(QWEN_7B, DEFAULTS, machine(gigabytes))
    assert found.verdict == verdict
    assert str(found).startswith(says)


def test_it_calls_nothing_slow_that_would_be_killed() -> None:
    assert fit(QWEN_7B, EngineSettings(use_mmap=False), machine(6)).verdict == "does not fit"


def test_it_finds_the_largest_window_that_fits() -> None:
    here = machine(8)
    room = fit(QWEN_7B, DEFAULTS, here).room_bytes
    window = largest_window(QWEN_7B, DEFAULTS, here, room)
    largest, beyond = (EngineSettings(n_ctx=each) for each in (window, window + 1))
    assert account(QWEN_7B, largest, here).used_bytes <= room < account(QWEN_7B, beyond, here).used_bytes


def test_it_offers_no_window_beyond_the_trained_one() -> None:
    assert fit(QWEN_7B, DEFAULTS, machine(64)).max_window == 32768
    stretched = EngineSettings(rope_scaling="yarn", rope_scale=2)
    assert fit(QWEN_7B, stretched, machine(64)).max_window == 65536


def test_it_leaves_room_for_the_models_that_are_loaded() -> None:
    assert fit(QWEN_7B, DEFAULTS, machine(16)).verdict == "fits"
    assert fit(QWEN_7B, DEFAULTS, machine(16), loaded_bytes=9 * GB).verdict == "does not fit"


def test_it_goes_by_what_is_available_now() -> None:
    busy = replace(machine(16), available_bytes=2 * GB)
    assert fit(QWEN_7B, DEFAULTS, busy).room_bytes == 2 * GB


def test_it_needs_no_window_of_a_model_with_a_short_one() -> None:
    assert read_header(STARTER).context_length <= MIN_WINDOW
    assert fit(read_header(STARTER), DEFAULTS, machine(8)).verdict == "fits"


# The machine


def write(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


MEMINFO = "MemTotal:  8000000 kB\nMemFree:  1000000 kB\nMemAvailable:  6000000 kB\n"


def test_it_reads_the_memory_of_this_machine() -> None:
    here = this_machine()
    assert 0 < here.available_bytes <= here.total_bytes
    assert here.cpu_flags


def test_it_reads_what_the_kernel_can_free(tmp_path: Path) -> None:
    proc = write(tmp_path, meminfo=MEMINFO, cpuinfo="flags\t\t: fpu avx2 avx512f\n")
    here = this_machine(proc, tmp_path / "none")
    assert (here.total_bytes, here.available_bytes) == (8_000_000 << 10, 6_000_000 << 10)
    assert here.repacked_types == {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4", "Q2_K"}


def test_it_keeps_to_the_limit_of_any_control_group_above(tmp_path: Path) -> None:
    proc = write(tmp_path / "proc", meminfo=MEMINFO, self__cgroup="0::/box/inner\n")
    groups = write(
        tmp_path / "groups",
        box__memory_dot_max=f"{4 << 30}\n",
        box__memory_dot_current=f"{3 << 30}\n",
        box__memory_dot_stat=f"anon {1 << 30}\ninactive_file {1 << 30}\nactive_file {1 << 30}\n",
        box__inner__memory_dot_max="max\n",
    )
    here = this_machine(proc, groups)
    assert (here.total_bytes, here.available_bytes) == (4 << 30, 3 << 30)


def test_it_keeps_to_the_limit_of_an_older_control_group(tmp_path: Path) -> None:
    proc = write(tmp_path / "proc", meminfo=MEMINFO, self__cgroup="5:cpu,cpuacct:/\n4:memory:/docker/abc\n")
    # In the container the group's folder is the root.
    groups = write(
        tmp_path / "groups",
        memory__memory_dot_limit_in_bytes=f"{2 << 30}\n",
        memory__memory_dot_usage_in_bytes=f"{1 << 30}\n",
        memory__memory_dot_stat="total_inactive_file 0\n",
    )
    here = this_machine(proc, groups)
    assert (here.total_bytes, here.available_bytes) == (2 << 30, 1 << 30)


OLDER_QUOTA = ("cpu__web__cpu_dot_cfs_quota_us", "cpu__web__cpu_dot_cfs_period_us")
NUM_CPUS = len(os.sched_getaffinity(0))
TENTH = "10000 100000\n"  # of a CPU: there is no less than one


@pytest.mark.parametrize(
    ("group", "files", "num_cpus"),
    [
        ("0::/\n", {}, NUM_CPUS),
        ("0::/\n", {"cpu_dot_max": "max 100000\n"}, NUM_CPUS),
        ("0::/system/web\n", {"system__web__cpu_dot_max": TENTH}, 1),
        ("0::/system/web\n", {"system__cpu_dot_max": TENTH, "system__web__cpu_dot_max": "9900000 100000\n"}, 1),
        ("0::/of/the/host\n", {"cpu_dot_max": TENTH}, 1),
        ("3:cpu,cpuacct:/web\n", {"cpu__web__cpu_dot_cfs_quota_us": "-1\n"}, NUM_CPUS),
        ("3:cpu,cpuacct:/web\n", dict(zip(OLDER_QUOTA, TENTH.split(), strict=True)), 1),
    ],
)
def test_it_keeps_to_the_smallest_quota_of_any_control_group_above(
    tmp_path: Path, group: str, files: dict[str, str], num_cpus: int
) -> None:
    proc = write(tmp_path / "proc", meminfo=MEMINFO, self__cgroup=group)
    (tmp_path / "groups").mkdir()
    assert this_machine(proc, write(tmp_path / "groups", **files)).num_cpus == num_cpus


# Headers of files that lie elsewhere


class Elsewhere:
    """A file that is read by ranges; counts what was read."""

    def __init__(self, content: bytes, size: int | None = None) -> None:
        self.content = content
        self.size = size or len(content)
        self.num_read = 0

    async def read(self, part: int, start: int, length: int) -> bytes:
        data = self.content[start : start + length]
        self.num_read += len(data)
        return data

    async def header(self) -> Header:
        return await fetch_header(self.read, sizes=[self.size], name=STARTER.name)


async def test_it_reads_a_header_by_ranges() -> None:
    assert await Elsewhere(STARTER.read_bytes()).header() == read_header(STARTER)


async def test_it_reads_on_until_the_header_is_whole(tmp_path: Path) -> None:
    many = 300_000
    tokens = array("tokenizer.ggml.tokens", 8, many, struct.pack("<Q2s", 2, b"ab") * many)
    content = build([ARCHITECTURE, CONTEXT, *SHAPE, tokens]) + bytes(32 << 20)
    elsewhere = Elsewhere(content)
    assert (await elsewhere.header()).vocab_size == many
    assert elsewhere.num_read == 4 << 20


async def test_it_refuses_a_file_that_ends_in_its_header() -> None:
    with pytest.raises(ModelRefused, match="ends in the middle of its header"):
        await Elsewhere(STARTER.read_bytes()[:9000]).header()
    with pytest.raises(ModelRefused, match="ends in the middle of its header"):
        await Elsewhere(STARTER.read_bytes()[:9000], size=STARTER.stat().st_size).header()


async def test_it_reads_a_header_from_the_hub() -> None:
    with HubServer(files={"starter.gguf": STARTER.read_bytes()}) as server:
        hub = server.client()
        file = await hub.find_file(REPO, "starter.gguf")
        header = await fetch_header(
            lambda part, start, length: hub.read_range(file, start, length, part=part),
            sizes=[part.size_bytes for part in file.parts],
            name=file.name,
        )
    assert header == read_header(STARTER)
    assert [request.headers["range"] for request in server.downloads()] == ["bytes=0-2097151"]


# Split files


def parts(folder: Path, *, second_number: int = 1) -> Path:
    """A model in two parts, the second of which says that it is `second_number`, counted from 0."""
    first = build([*KEYS, number("split.count", 2), number("split.no", 0)], TENSORS[:1], DATA[:576])
    second = build([number("split.count", 2), number("split.no", second_number)], [tensor("c", [32])], bytes(128))
    (folder / "m-00002-of-00002.gguf").write_bytes(second)
    (folder / "m-00001-of-00002.gguf").write_bytes(first)
    return folder / "m-00001-of-00002.gguf"


def test_it_reads_the_parts_of_a_split_file_as_one(tmp_path: Path) -> None:
    found = read_header(parts(tmp_path))
    assert [tensor.name for tensor in found.tensors] == ["a", "c"]
    assert found.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


async def test_it_reads_the_parts_of_a_split_file_elsewhere(tmp_path: Path) -> None:
    first = parts(tmp_path)
    contents = [path.read_bytes() for path in sorted(tmp_path.iterdir())]

    async def read(part: int, start: int, length: int) -> bytes:
        return contents[part][start : start + length]

    assert await fetch_header(read, sizes=[*map(len, contents)], name=first.name) == read_header(first)


def test_it_refuses_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="not part 2 of 2"):
        read_header(parts(tmp_path, second_number=5))


def test_it_names_the_part_that_is_missing(tmp_path: Path) -> None:
    first = parts(tmp_path)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelRefused, match=r"m-00002-of-00002\.gguf cannot be read"):
        read_header(first)


def test_it_takes_no_other_part_than_the_first(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused):
        read_header(parts(tmp_path).with_name("m-00002-of-00002.gguf"))


def test_it_carries_a_header_between_processes() -> None:
    here = read_header(STARTER)
    assert msgspec.json.decode(msgspec.json.encode(here), type=Header) == here


# The speed


def tokens_per_s(header: Header, machine: Machine, **settings: int) -> float:
    found = fit(header, EngineSettings(**settings), machine).tokens_per_s
    assert found is not None
    return found


def test_it_writes_as_fast_as_its_weights_are_read() -> None:
    two, four = (tokens_per_s(QWEN_7B, machine(32, num_cpus=number)) for number in (2, 4))
    assert two == pytest.approx(10e9 / 4.4e9, rel=0.05)  # 4.7 GB, less the table that is only looked up
    assert four == pytest.approx(2 * two, rel=0.02)


def test_many_cpus_read_no_faster_than_some() -> None:
    assert tokens_per_s(QWEN_7B, machine(32, num_cpus=64)) == tokens_per_s(QWEN_7B, machine(32, num_cpus=6))


def test_it_writes_slower_with_fewer_threads() -> None:
    cpus = machine(32, num_cpus=4)
    assert tokens_per_s(QWEN_7B, cpus, n_threads=1) == tokens_per_s(QWEN_7B, machine(32, num_cpus=1))
    assert tokens_per_s(QWEN_7B, cpus, n_threads=8) == tokens_per_s(QWEN_7B, cpus)


def test_a_mixture_reads_only_the_experts_that_it_uses() -> None:
    experts = [each._replace(name=each.name.replace("ffn_up", "ffn_up_exps")) for each in QWEN_7B.tensors]
    mixture = replace(QWEN_7B, tensors=tuple(experts), expert_share=0.25)
    assert tokens_per_s(mixture, machine(32, num_cpus=2)) > tokens_per_s(QWEN_7B, machine(32, num_cpus=2))


def test_it_foretells_no_speed_that_the_cpu_does_not_set() -> None:
    assert fit(QWEN_7B, DEFAULTS, machine(32, num_cpus=2, gpu=24)).tokens_per_s is None
    assert fit(QWEN_7B, DEFAULTS, machine(3, num_cpus=2)).tokens_per_s is None  # the disk would
    assert fit(QWEN_7B, DEFAULTS, machine(32)).tokens_per_s is None  # of which nothing is known
