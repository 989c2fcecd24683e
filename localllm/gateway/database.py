"""Where async code meets the ORM: one writer thread and a few readers.

Channels and Django would put every ORM call of all sockets on one shared thread. Here, writes go through
one thread of their own (SQLite has one writer anyway), reads through a small pool.
Awaiting a write that is cancelled does not undo it: every write must be safe to have happened.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from django.db import OperationalError, connection

log = logging.getLogger(__name__)

RETRY_S = 1.0

P = ParamSpec("P")
T = TypeVar("T")

_writer = ThreadPoolExecutor(1, thread_name_prefix="db-writer")
_readers = ThreadPoolExecutor(4, thread_name_prefix="db-reader")


async def write(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await _run(_writer, lambda: function(*args, **kwargs))


async def store(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Write, however long it takes: a full disk or a locked database holds it up, and loses nothing."""
    while True:
        try:
            return await write(function, *args, **kwargs)
        except OperationalError as exc:
            log.error("The database cannot be written, trying again in %.0f s: %s", RETRY_S, exc)
            await asyncio.sleep(RETRY_S)


async def read(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await _run(_readers, lambda: function(*args, **kwargs))


async def _run(pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    def run() -> T:
        # Each thread keeps its connection, for opening one takes longer than most queries.
        try:
            return call()
        except Exception:
            connection.close()  # whatever state it is in, the next call begins with a new one
            raise

    return await asyncio.get_running_loop().run_in_executor(pool, run)
