"""manage.py download REPO FILE: the download of the pages, with a bar. A running server does it; else this process."""

from __future__ import annotations

import asyncio
from typing import Any

from django.core.management import BaseCommand, CommandError, CommandParser
from tqdm import tqdm

from localllm.gateway import database, downloads, home
from localllm.gateway.models import Download, Job
from localllm.inference.errors import InferenceError

LOOK_EVERY_S = 0.5


class Command(BaseCommand):
    help = "Download a GGUF file of a Hugging Face repository and register it. Ctrl+C pauses; again goes on."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("repo", help="such as Qwen/Qwen2.5-0.5B-Instruct-GGUF")
        parser.add_argument("file", help="its name there; of a split file any part")
        parser.add_argument("--revision", default="main", help="branch, tag or commit (default: main)")

    def handle(self, *args: Any, repo: str, file: str, revision: str, **options: Any) -> str:
        home.prepare()
        try:
            return asyncio.run(_download(repo, file, revision))
        except InferenceError as exc:
            raise CommandError(str(exc)) from exc
        except KeyboardInterrupt:
            way_on = "The server goes on with it." if home.is_served() else "The same command goes on from here."
            raise CommandError(f"Stopped. {way_on}") from None


async def _download(repo: str, name: str, revision: str) -> str:
    row = await downloads.request(repo, name, revision=revision)
    is_served = home.is_served()
    work = None if is_served else asyncio.create_task(_work(row.job))
    try:
        row = await _follow(row, is_served)
    finally:
        if work:
            await database.store(row.job.pause)  # as after Ctrl+C; one that is over stays so
            work.cancel()
            await asyncio.wait([work])
    if row.job.state != "complete":
        raise CommandError(row.job.error or f"The download is {row.job.state}.")
    return f"{row.model}: {row.model.description}" if row.model else "It was deleted since."


async def _work(job: Job) -> None:
    """Run it here: what a process that was killed has left running, too."""
    if job.state == "running":
        await database.store(job.run_again)
    if not await database.store(job.begin):
        return
    error = "A fault of the program ended it."
    try:
        await downloads.run(job)
        error = ""
    except InferenceError as exc:
        error = str(exc)
    finally:
        await database.store(job.finish, error)


async def _follow(row: Download, is_served: bool) -> Download:
    """Show how far it is until it is over; the row as it is then."""
    with tqdm(total=row.size_bytes, initial=row.num_bytes, unit="B", unit_scale=True, disable=None) as bar:
        while row.job.is_live:
            await asyncio.sleep(LOOK_EVERY_S)
            row = await database.read(Download.objects.select_related("job", "model").get, pk=row.pk)
            bar.set_postfix_str(row.delay, refresh=False)
            bar.update(row.num_bytes - bar.n)
            if is_served and not home.is_served():
                raise CommandError("The server ended. The same command goes on from here.")
    return row
