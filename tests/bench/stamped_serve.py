"""manage.py serve with workers that note when they sampled each token."""

from __future__ import annotations

from django.core.management import execute_from_command_line

from tests.bench import workers

if __name__ == "__main__":
    with workers.replaced_by("tests.bench.stamped_worker"):
        execute_from_command_line(["manage.py", "serve"])
