"""The prompt templates as data/prompt_templates.yaml has them. A release that changes it does this again."""

from typing import Any

from django.db import migrations

from localllm.gateway.models.prompt_template import install_shipped


def install(apps: Any, schema_editor: Any) -> None:
    names = ("PromptTemplate", "PromptTemplateVersion")
    install_shipped(*(apps.get_model("gateway", name).objects for name in names))


class Migration(migrations.Migration):
    dependencies = [("gateway", "0006_prompt_templates")]

    operations = [migrations.RunPython(install, migrations.RunPython.noop)]
