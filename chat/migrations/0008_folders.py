"""Folders of conversations. SQLite rebuilds the table, and with it go the triggers of the search."""

from typing import Any

from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from chat import search


def reinstall_search(apps: Any, schema_editor: BaseDatabaseSchemaEditor) -> None:
    search.install(schema_editor)


class Migration(migrations.Migration):
    dependencies = [
        ("chat", "0007_context"),
    ]

    operations = [
        migrations.AddField(
            model_name="conversation",
            name="folder",
            field=models.CharField(blank=True, max_length=60),
        ),
        migrations.RunPython(reinstall_search, migrations.RunPython.noop),
    ]
