"""The data directory: made, brought up to date, and locked by the one process that serves it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor


def prepare() -> None:
    """Make it, bring its database up to date, and make the admin the environment names.

    Safe beside a running server, and beside another process that does the same.
    """
    home: Path = settings.HOME
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(OSError):  # not ours: then its owner has decided
        home.chmod(0o700)
    with (home / "prepare.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA journal_mode=WAL")  # stays with the file
        if _has_unapplied_migrations():
            call_command("migrate", interactive=False, verbosity=0)
        _make_admin_of_environment()


def _has_unapplied_migrations() -> bool:
    executor = MigrationExecutor(connection)
    return bool(executor.migration_plan(executor.loader.graph.leaf_nodes()))


def _make_admin_of_environment() -> None:
    name = os.environ.get("DJANGO_SUPERUSER_USERNAME", "")
    password = os.environ.get("DJANGO_SUPERUSER_PASSWORD", "")
    users = get_user_model()._default_manager
    if not name or users.filter(username=name).exists():
        return
    if not password:
        raise CommandError(
            f"DJANGO_SUPERUSER_USERNAME is {name!r}, but DJANGO_SUPERUSER_PASSWORD is empty. Set both, "
            "or neither and make the first account in the browser."
        )
    users.create_superuser(name, os.environ.get("DJANGO_SUPERUSER_EMAIL", ""), password)


def is_served() -> bool:
    """Whether a process serves it now."""
    with (settings.HOME / "serve.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


@contextmanager
def served() -> Iterator[None]:
    """While a process serves the data directory: no second one may, and the database stays open.

    Closing the last connection would copy the write-ahead log back and delete it, which costs far more
    than any request.
    """
    with (settings.HOME / "serve.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise CommandError(
                f"Another LocalLLM (process {lock.read().strip() or 'unknown'}) already serves the data directory "
                f"{settings.HOME}. Stop it first, or set LOCALLLM_HOME to another directory."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        keeper = connection.copy()
        keeper.ensure_connection()
        with keeper.cursor() as cursor:
            cursor.execute("SELECT COUNT(*) FROM sqlite_schema")  # opens the log, not only the file
        try:
            yield
        finally:
            keeper.close()
