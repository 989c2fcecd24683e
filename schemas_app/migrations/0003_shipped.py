"""The shipped schemas, once: what an admin edits or deletes afterwards stays so."""

from typing import Any

from django.db import migrations

from schemas_app.shipped import shipped


def add(apps: Any, schema_editor: Any) -> None:
    Schema = apps.get_model("schemas_app", "Schema")
    for each in shipped():
        if Schema.objects.filter(slug=each.slug).exists():
            continue
        schema = Schema.objects.create(slug=each.slug, name=each.name, description=each.description, is_shared=True)
        schema.versions.create(number=1, text=each.text, prompt_template=each.prompt_template)


class Migration(migrations.Migration):
    dependencies = [("schemas_app", "0002_batches")]

    operations = [migrations.RunPython(add, migrations.RunPython.noop)]
