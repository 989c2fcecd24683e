"""Which of two variants does better, asked as often as one likes while the figures come in.

A fixed-horizon test may be read once; who looks after every answer and stops at the first "significant" one is
wrong far more often than the test says. The interval here holds at all times together: the chance that it ever
leaves out the true difference is at most `alpha`, so stopping at any moment is allowed. It is the mixture
sequential probability ratio test of Robbins (1970) as Johari et al. (https://arxiv.org/abs/1512.04922) use it for
A/B tests, with estimated variances. Knows numbers alone, no rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

ALPHA = 0.05
MIN_COUNT = 30  # of each variant; below it, an estimated variance says little
TUNED_TO = 500  # of each variant: where the interval is as narrow as it can be
# What makes it narrowest there (https://arxiv.org/abs/2103.06476, equation 25).
_MIXTURE = (2 * np.log(1 / ALPHA) + np.log(1 + 2 * np.log(1 / ALPHA))) / (TUNED_TO / 2)

Number = TypeVar("Number", float, npt.NDArray[np.float64])


@dataclass(frozen=True, slots=True)
class Sample:
    """What is known of one variant. `variance` is that of one observation."""

    count: int
    mean: float
    variance: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Sample:
        array = np.fromiter(values, float)
        count = len(array)
        return cls(count, float(array.mean()) if count else 0.0, float(array.var(ddof=1)) if count > 1 else 0.0)


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float

    @property
    def is_decided(self) -> bool:
        """Zero is out: there is a difference."""
        return self.low > 0 or self.high < 0


def difference(control: Sample, variant: Sample, *, alpha: float = ALPHA) -> Interval | None:
    """Where the mean of `variant` less that of `control` lies; None while there is too little to say."""
    if min(control.count, variant.count) < MIN_COUNT:
        return None
    num_a, num_b = float(control.count), float(variant.count)
    radius = float(half_width(num_a, num_b, control.variance, variant.variance, alpha=alpha))
    middle = variant.mean - control.mean
    return Interval(middle - radius, middle + radius)


def half_width(num_a: Number, num_b: Number, variance_a: Number, variance_b: Number, *, alpha: float = ALPHA) -> Number:
    """Of the interval around the difference of two means. Numbers, or arrays of them."""
    # A few answers of a rare variant may all be alike by chance: neither variance is taken below that of both.
    pooled = (num_a * variance_a + num_b * variance_b) / (num_a + num_b)
    variance = np.maximum(variance_a, pooled) / num_a + np.maximum(variance_b, pooled) / num_b  # of the difference
    ratio = _MIXTURE / (1 / num_a + 1 / num_b)
    return np.sqrt(variance * (1 + 1 / ratio) * (2 * np.log(1 / alpha) + np.log(1 + ratio)))  # type: ignore[no-any-return]
