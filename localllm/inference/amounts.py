"""Counts, bytes and seconds as people read them. Decimal: 1 GB is 1,000,000,000 bytes, as disks and the hub count."""

from __future__ import annotations

import math


def size(num_bytes: float) -> str:
    """Such as `4.9 GB`, `351 MB`, `3.5 MB`."""
    if num_bytes >= 999.5e6:
        return f"{num_bytes / 1e9:.1f} GB"
    if num_bytes >= 10e6:
        return f"{num_bytes / 1e6:.0f} MB"
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 0.1e6 else f"{num_bytes / 1e3:.0f} kB"


def duration(seconds: float) -> str:
    """Such as `12 s`, `3 min`, `2 h 5 min`; rounded up."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def pace(tokens_per_s: float) -> str:
    """Of an estimate, in whole tokens: `25`, `less than 1`."""
    return f"{tokens_per_s:.0f}" if tokens_per_s >= 0.95 else "less than 1"


def number(count: int) -> str:
    """Such as `4,096`."""
    return f"{count:,}"


def parameters(count: int) -> str:
    """Such as `7.6 billion`, `494 million`."""
    return f"{count / 1e9:.1f} billion" if count >= 999.5e6 else f"{count / 1e6:.0f} million"
