"""The catalogue: what it says of each model, and which it recommends."""

import msgspec
import pytest

from localllm.gateway.catalogue import QUANTISATIONS, USUAL, Choice, Entry, choices, entries, named, of_repository
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.memory import Machine

GB = 10**9


def on(gigabytes: int, **more: int) -> dict[str, Choice]:
    machine = Machine(total_bytes=gigabytes * GB, available_bytes=gigabytes * GB, **more)  # type: ignore[arg-type]
    return {choice.entry.name: choice for choice in choices(machine, EngineSettings())}


def recommended(found: dict[str, Choice]) -> Entry | None:
    (entry,) = [choice.entry for choice in found.values() if choice.is_recommended] or [None]
    return entry


def entry(**changes: object) -> Entry:
    return msgspec.convert(msgspec.to_builtins(entries()[0]) | changes, Entry)


def test_it_lists_each_model_once() -> None:
    names = [entry.name for entry in entries()]
    repositories = {entry.repository for entry in entries()}
    assert len(names) == len(set(names)) == len(repositories) == 21


def test_it_computes_a_size_for_each_quantisation() -> None:
    for each in entries():
        sizes = [each.sizes[quantisation] for quantisation in QUANTISATIONS[1:]]  # Q2_K is not always the smallest
        assert sizes == sorted(sizes), each.name
        assert each.sizes["Q8_0"] < 1.15 * each.num_parameters * 34 / 32


# As their publishers list them.
@pytest.mark.parametrize(
    ("name", "quantisation", "gigabytes"),
    [
        ("Qwen3 4B", "Q8_0", 4.28),
        ("Qwen3 4B", "Q4_K_M", 2.50),
        ("Llama 3.2 1B", "Q6_K", 1.02),
        ("Llama 3.2 1B", "Q4_K_S", 0.78),
        ("Gemma 2 9B", "Q8_0", 9.82),
    ],
)
def test_its_sizes_are_close_to_published_ones(name: str, quantisation: str, gigabytes: float) -> None:
    (found,) = [entry for entry in entries() if entry.name == name]
    assert found.sizes[quantisation] == pytest.approx(gigabytes * GB, rel=0.02)  # type: ignore[index]


def test_it_recommends_the_largest_that_fits_and_may_be_sold() -> None:
    small, large = recommended(on(8)), recommended(on(32))
    assert small and large
    assert small.commercial_use == large.commercial_use == "yes"
    assert (
        small.num_parameters
        < large.num_parameters
        == max(entry.num_parameters for entry in entries() if entry.commercial_use == "yes")
    )


def test_it_recommends_what_writes_as_fast_as_it_is_read() -> None:
    slow, usual, quick = (on(32, num_cpus=number) for number in (2, 4, 6))
    names = [entry.name for found in (slow, usual, quick) if (entry := recommended(found))]
    assert names == ["Qwen3 1.7B", "Qwen3 4B", "Qwen3 8B"]
    assert all((found[name].fit.tokens_per_s or 0) > 5 for found, name in zip((slow, usual, quick), names, strict=True))


def test_it_recommends_the_largest_where_a_gpu_holds_it() -> None:
    assert recommended(on(32, num_cpus=2, gpu_bytes=24 * GB)) == recommended(on(32))


def test_it_recommends_nothing_where_nothing_fits() -> None:
    assert recommended(on(0)) is None


def test_it_leaves_room_beside_what_it_recommends() -> None:
    for gigabytes in (4, 8, 16):
        (best,) = [choice for choice in on(gigabytes).values() if choice.is_recommended]
        assert best.fit.need.used_bytes < 0.8 * best.fit.room_bytes


def test_it_judges_the_usual_quantisation() -> None:
    choice = on(16)["Qwen2.5 7B"]
    assert choice.fit.need.weights_bytes == choice.entry.header(USUAL).tensor_bytes


def test_the_best_here_is_the_usual_or_the_largest_below_it_that_fits() -> None:
    found = [on(gigabytes)["Qwen2.5 7B"] for gigabytes in (32, 6, 5, 4)]
    assert [(choice.quantisation, choice.fit.verdict) for choice in found] == [
        ("Q4_K_M", "fits"),
        ("Q3_K_S", "fits"),
        ("Q3_K_S", "smaller context"),
        ("Q4_K_M", "does not fit"),
    ]


def test_a_small_model_is_worth_more_bits() -> None:
    assert on(8)["Qwen2.5 0.5B"].quantisation == "Q8_0"


def test_the_best_is_among_what_there_is() -> None:
    (large,) = [entry for entry in entries() if entry.name == "Qwen3 8B"]
    machine = Machine(total_bytes=32 * GB, available_bytes=32 * GB)
    found = large.best(machine, EngineSettings(), among=["Q3_K_S", "Q8_0", "IQ2_XS"])
    assert found and found[0] == "Q3_K_S"
    assert large.best(machine, EngineSettings(), among=["Q8_0"]) is None


def test_the_recommended_is_the_first() -> None:
    machine = Machine(total_bytes=8 * GB, available_bytes=8 * GB)
    assert [choice.is_recommended for choice in choices(machine, EngineSettings())][:2] == [True, False]


def test_each_is_found_by_its_address_and_its_repository() -> None:
    for each in entries():
        assert named(each.slug) is of_repository(each.repository) is each
    assert named("nothing") is of_repository("some/thing") is None


def test_it_wants_a_reason_where_commercial_use_is_limited() -> None:
    assert entry(commercial_use="limited", because="use policy").because
    for changes in ({"commercial_use": "limited"}, {"because": "use policy"}, {"commercial_use": "perhaps"}):
        with pytest.raises(msgspec.ValidationError):
            entry(**changes)


def test_it_refuses_words_it_does_not_know() -> None:
    with pytest.raises(msgspec.ValidationError, match="licens"):
        entry(license="MIT")
