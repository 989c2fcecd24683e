"""Answers by a schema. SQLite rebuilds the tables, and with them go the triggers of the search."""

from typing import Any

import django.db.models.deletion
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from chat import search


def reinstall_search(apps: Any, schema_editor: BaseDatabaseSchemaEditor) -> None:
    search.install(schema_editor)


class Migration(migrations.Migration):
    dependencies = [
        ("chat", "0002_search"),
        ("schemas_app", "0001_schemas"),
    ]

    operations = [
        migrations.AddField(
            model_name="conversation",
            name="schema",
            field=models.ForeignKey(
                blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, to="schemas_app.schema"
            ),
        ),
        migrations.AddField(
            model_name="message",
            name="guarantee",
            field=models.JSONField(default=dict),
        ),
        migrations.AddField(
            model_name="message",
            name="reasoning",
            field=models.TextField(blank=True, help_text="What a thinking model wrote before its answer."),
        ),
        migrations.AddField(
            model_name="message",
            name="schema_version",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.SET_NULL, to="schemas_app.schemaversion"
            ),
        ),
        migrations.RunPython(reinstall_search, migrations.RunPython.noop),
    ]
