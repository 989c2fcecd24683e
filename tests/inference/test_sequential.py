"""The interval of A/B tests: right at every moment for whoever looks after each answer, and still able to find."""

import numpy as np
import pytest

from localllm.inference.sequential import ALPHA, MIN_COUNT, Sample, difference, half_width

NUM_EXPERIMENTS, NUM_ANSWERS = 1000, 1000
# What one observation may look like: a thumb, a rare failure, the logarithm of a time, something lopsided.
KINDS = {
    "thumbs": lambda random, shape: (random.random(shape) < 0.6).astype(float),
    "rare failures": lambda random, shape: (random.random(shape) < 0.97).astype(float),
    "times": lambda random, shape: random.normal(7.0, 0.8, shape),
    "lopsided": lambda random, shape: random.exponential(1.0, shape),
}


def z_test(num_a, num_b, variance_a, variance_b):
    """What is usual, and right only for whoever looks once."""
    return 1.96 * np.sqrt(variance_a / num_a + variance_b / num_b)


def decided(kind, *, effect=0.0, rarer=1, half_width=half_width):
    """Read after every answer and stopped at the first difference shown: the share of experiments that ever stop.

    For each answer of the second variant there are `rarer` of the first.
    """
    random = np.random.default_rng(7)
    steps = np.arange(NUM_ANSWERS)
    a = _running(KINDS[kind](random, (NUM_EXPERIMENTS, NUM_ANSWERS)), steps)
    b = _running(KINDS[kind](random, (NUM_EXPERIMENTS, NUM_ANSWERS)) + effect, steps // rarer)
    is_out = np.abs(b["mean"] - a["mean"]) > half_width(a["num"], b["num"], a["variance"], b["variance"])
    return (is_out & (b["num"] >= MIN_COUNT)).any(axis=1).mean()


def _running(values, at):
    """Count, mean and variance so far, for all experiments at once, read at the steps `at`."""
    num = np.broadcast_to(np.arange(1.0, values.shape[1] + 1), values.shape)
    mean = values.cumsum(1) / num
    variance = np.maximum((values**2).cumsum(1) - num * mean**2, 0) / np.maximum(num - 1, 1)
    return {"num": num[:, at], "mean": mean[:, at], "variance": variance[:, at]}


@pytest.mark.parametrize("rarer", [1, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_a_difference_where_there_is_none_in_at_most_five_of_a_hundred_experiments(kind, rarer):
    assert decided(kind, rarer=rarer) <= ALPHA


@pytest.mark.parametrize("kind", KINDS)
def test_a_test_that_may_be_read_once_is_wrong_far_more_often_when_it_is_read_all_the_time(kind):
    assert decided(kind, half_width=z_test) > 4 * ALPHA


def test_it_finds_a_real_difference():
    assert decided("times", effect=0.25) > 0.95
    assert decided("lopsided", effect=-0.3) > 0.9


def test_it_says_nothing_of_few_answers():
    few = Sample.of([0.0] * (MIN_COUNT - 1))
    assert difference(few, Sample.of([1.0] * 500)) is None
    assert difference(Sample.of([]), few) is None


def test_its_interval_is_around_the_difference_and_narrows():
    random = np.random.default_rng(1)
    a, b = random.normal(10, 1, 2000), random.normal(10.2, 1, 2000)
    early = difference(Sample.of(a[:100]), Sample.of(b[:100]))
    late = difference(Sample.of(a), Sample.of(b))
    assert early.low < 0 < early.high and not early.is_decided
    assert 0 < late.low < 0.2 < late.high < early.high and late.is_decided


def test_equal_answers_are_no_difference():
    assert not difference(Sample.of([1.0] * 100), Sample.of([1.0] * 100)).is_decided
