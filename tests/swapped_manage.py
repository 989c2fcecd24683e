"""manage.py of a server with the fault that the durability test must be able to see: shown before committed."""

import asyncio
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "localllm.settings")


async def show_before_commit() -> None:
    from chat import live
    from localllm.gateway import database

    async with live._flushing:
        batch = [reply.pending() for reply in live._live.values() if reply.has_news]
        for piece in batch:
            piece.reply.take(piece)
            piece.reply.wake()
        await asyncio.sleep(0.2)  # the commit of a busy disk
        await database.write(live._commit, batch)


if __name__ == "__main__":
    import django
    from django.core.management import execute_from_command_line

    django.setup()
    from chat import live

    live._flush = show_before_commit
    execute_from_command_line(sys.argv)
