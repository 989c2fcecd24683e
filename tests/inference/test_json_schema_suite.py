"""The official JSON-Schema-Test-Suite: every required test of every draft, formats as annotations."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from localllm.inference.json_schema.document import Document
from localllm.inference.json_schema.validator import Validator

SUITE = Path(__file__).parents[1] / "json_schema_suite"
DRAFTS = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}
FILES = sorted(path for draft in DRAFTS for path in (SUITE / "tests" / draft).glob("*.json"))


def of_draft(schema: Any, draft: str) -> Any:
    return {"$schema": DRAFTS[draft], **schema} if isinstance(schema, dict) else schema


@cache
def library(draft: str) -> dict[str, Any]:
    """The suite's remote schemas, by the address it gives them."""
    folder = SUITE / "remotes"
    schemas = {}
    for path in folder.rglob("*.json"):
        name, schema = path.relative_to(folder).as_posix(), json.loads(path.read_text())
        if isinstance(schema, dict) and name.partition("/")[0] not in DRAFTS.keys() - {draft}:
            schemas[f"http://localhost:1234/{name}"] = of_draft(schema, draft) if name.startswith(draft) else schema
    return schemas


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_judges_as_the_standard_says(path: Path) -> None:
    draft = path.parent.name
    for group in json.loads(path.read_text()):
        document = Document(json.dumps(of_draft(group["schema"], draft)), library(draft))
        validator = Validator(document, asserts_formats=False)
        validator.check_schema()
        for test in group["tests"]:
            assert validator.is_valid(test["data"]) == test["valid"], (group["description"], test["description"])
