"""What a user can set or run is documented, and what is documented exists."""

import re
from pathlib import Path

import pytest
from django.urls import get_resolver

ROOT = Path(__file__).resolve().parent.parent
SETTINGS_PAGE = (ROOT / "docs/settings.md").read_text()
COMMANDS = [path.stem for path in ROOT.glob("localllm/gateway/management/commands/[a-z]*.py")]
SETTINGS = sorted(set(re.findall(r'setting\("([A-Z_]+)"', (ROOT / "localllm/settings.py").read_text())))


@pytest.mark.parametrize("name", [*SETTINGS, "LOCALLLM_CONFIG"])
def test_every_setting_is_documented(name):
    assert f"`{name}`" in SETTINGS_PAGE


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name):
    assert f"`manage.py {name}" in SETTINGS_PAGE


@pytest.mark.parametrize(
    "page", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"], ids=lambda page: page.name
)
def test_links_between_the_pages_lead_somewhere(page):
    targets = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("target", ["run", "test", "lint", "fix", "bench", "bench-structured", "chaos"])
def test_the_makefile_has_the_targets_that_the_docs_name(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_api_route_is_documented():
    documented = (ROOT / "docs/api.md").read_text().replace("{id}", "<name>")
    routes = [str(pattern.pattern) for pattern in get_resolver("localllm.gateway.api.openai").url_patterns]
    assert len(routes) > 3 and [route for route in routes if f"/v1/{route}" not in documented] == []
