"""What is sent of a chat: places of messages, counts, summaries. SQLite rebuilds the tables: see 0003."""

import uuid
from typing import Any

import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from chat import search


def reinstall_search(apps: Any, schema_editor: BaseDatabaseSchemaEditor) -> None:
    search.install(schema_editor)


class Migration(migrations.Migration):
    dependencies = [
        ("chat", "0006_attachments"),
        ("gateway", "0011_experiments"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddField(
            model_name="conversation",
            name="compress_at",
            field=models.PositiveSmallIntegerField(
                choices=[
                    (0, "Never"),
                    (50, "At 50 % of the window"),
                    (75, "At 75 % of the window"),
                    (90, "At 90 % of the window"),
                ],
                default=75,
                verbose_name="summarise older messages",
            ),
        ),
        migrations.AddField(
            model_name="message",
            name="num_tokens",
            field=models.PositiveIntegerField(help_text="Of its content, as `tokens_key` was counted.", null=True),
        ),
        migrations.AddField(
            model_name="message",
            name="placement",
            field=models.CharField(
                choices=[
                    ("automatic", "automatic"),
                    ("pinned", "pinned"),
                    ("expanded", "expanded"),
                    ("excluded", "excluded"),
                ],
                default="automatic",
                max_length=9,
            ),
        ),
        migrations.AddField(
            model_name="message",
            name="tokens_key",
            field=models.CharField(blank=True, max_length=32),
        ),
        migrations.CreateModel(
            name="Summary",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("data", models.JSONField(help_text="Facts by list; the pinned ones are carried on word for word.")),
                ("text", models.TextField(help_text="As the model reads it.")),
                (
                    "num_messages",
                    models.PositiveIntegerField(help_text="That it stands for, those of `previous` not counted."),
                ),
                ("tokens_before", models.PositiveIntegerField()),
                ("tokens_after", models.PositiveIntegerField()),
                ("model_name", models.CharField(max_length=100)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("edited_at", models.DateTimeField(null=True)),
                ("is_undone", models.BooleanField(default=False)),
                (
                    "conversation",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="summaries", to="chat.conversation"
                    ),
                ),
                (
                    "edited_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "previous",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.SET_NULL, related_name="+", to="chat.summary"
                    ),
                ),
                (
                    "template_version",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.SET_NULL, to="gateway.prompttemplateversion"
                    ),
                ),
                (
                    "up_to",
                    models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="+", to="chat.message"),
                ),
            ],
            options={
                "verbose_name_plural": "summaries",
                "ordering": ("-created_at",),
            },
        ),
        migrations.RunPython(reinstall_search, migrations.RunPython.noop),
    ]
