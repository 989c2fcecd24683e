"""A server of ours as a user starts it, on a port and a data directory of its own, with a user and a key.

Run as a program it makes the rows: the environment names the data directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.build_llama import ROOT

NUM_CONVERSATIONS = 10
SERVE = ("manage.py", "serve")


@dataclass(frozen=True, slots=True)
class Site:
    url: str
    key: str
    cookie: str
    conversations: list[str]
    pid: int


@contextlib.contextmanager
def serving(
    model: Path,
    *,
    num_slots: int,
    window: int,
    program: tuple[str, ...] = SERVE,
    max_tokens: int = 128,
    rows: str = "tests.bench.site",
) -> Iterator[Site]:
    """Serve `model` by `python PROGRAM`; ready when it answers, the model perhaps still loading.

    `rows` is the module that makes the rows when it is run as a program.
    """
    with tempfile.TemporaryDirectory(prefix="localllm-bench-") as home:
        env = {**os.environ, "LOCALLLM_HOME": home, "PORT": "0", "DJANGO_SETTINGS_MODULE": "localllm.settings"}
        fields = {"n_ctx": window, "num_slots": num_slots, "max_tokens": max_tokens}
        make_rows = [sys.executable, "-m", rows, str(model), json.dumps(fields)]
        made = json.loads(subprocess.check_output(make_rows, env=env, cwd=ROOT))
        process = subprocess.Popen([sys.executable, *program], env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            yield Site(_address(process), pid=process.pid, **made)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _address(process: subprocess.Popen[str]) -> str:
    for line in process.stdout or ():
        if match := re.search(r"ready at (http\S+)", line):
            return match[1]
    raise SystemExit(f"The server ended with code {process.wait()} before it was ready.")


def make_rows(model: Path, fields: dict[str, Any]) -> dict[str, object]:
    """A user who is signed in, with conversations and an API key, and the model as the default one."""
    import django

    django.setup()
    from django.contrib.auth.models import User
    from django.test import Client

    from chat.models import Conversation
    from localllm.gateway import home
    from localllm.gateway.models import ApiKey, LanguageModel

    home.prepare()
    user = User.objects.create_superuser("bench")
    client = Client()
    client.force_login(user)
    LanguageModel.objects.register(model, make_default=True, **fields)
    return {
        "key": ApiKey.objects.issue(user, "bench")[1],
        "cookie": client.cookies.output(attrs=[], header="").strip(),
        "conversations": [str(Conversation.objects.create(owner=user).pk) for _ in range(NUM_CONVERSATIONS)],
    }


if __name__ == "__main__":
    print(json.dumps(make_rows(Path(sys.argv[1]), json.loads(sys.argv[2]))))
