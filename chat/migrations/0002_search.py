"""The full-text index of chat/search.py."""

from typing import Any

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from chat import search


def install(apps: Any, schema_editor: BaseDatabaseSchemaEditor) -> None:
    search.install(schema_editor)


def remove(apps: Any, schema_editor: BaseDatabaseSchemaEditor) -> None:
    search.remove(schema_editor)


class Migration(migrations.Migration):
    dependencies = [("chat", "0001_initial")]
    operations = [migrations.RunPython(install, remove)]
