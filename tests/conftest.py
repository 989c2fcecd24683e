"""Fixtures for all tests."""

import os

import pytest
from hypothesis import settings

from tests.server import collect_static, server

__all__ = ["server"]

# On a developer's machine new examples are tried each time; CI judges a change, and not the luck of the draw.
settings.register_profile("ci", derandomize=True, deadline=None)
if "CI" in os.environ:
    settings.load_profile("ci")


@pytest.fixture(scope="session", autouse=True)
def static_files():
    """Pages need the manifest of static files, which `make run` makes."""
    collect_static()
