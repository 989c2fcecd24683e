"""How long a thinking model thought. A nullable column is added in place, so the triggers of the search stay."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("chat", "0003_schemas"),
    ]

    operations = [
        migrations.AddField(
            model_name="message",
            name="reasoning_ms",
            field=models.PositiveIntegerField(null=True),
        ),
    ]
