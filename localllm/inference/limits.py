"""Limits that a child process sets on itself before it touches what nobody trusts."""

from __future__ import annotations

import resource


def lower(limit: int, value: int) -> None:
    """Set a soft limit, unless a tighter one holds already."""
    bounds = [value, *resource.getrlimit(limit)]
    tightest = min(bound for bound in bounds if bound != resource.RLIM_INFINITY)
    resource.setrlimit(limit, (tightest, bounds[2]))
