"""Fixtures for all tests."""

import pytest

from tests.server import collect_static, server

__all__ = ["server"]


@pytest.fixture(scope="session", autouse=True)
def static_files():
    """Pages need the manifest of static files, which `make run` makes."""
    collect_static()
