"""Parameters of a function from a message: what the message does not say is reported as missing, not invented.

Every parameter may also be null, which the model is told to write for "not said". Knows schemas and data;
asks no model: `inference/structured.py` does.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator

import msgspec

from localllm.inference.json_schema.document import Document, Json, pointer
from localllm.inference.json_schema.errors import SchemaRefused
from localllm.inference.json_schema.validator import Validator
from localllm.inference.structured import StructuredError

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
NO_PARAMETERS: dict[str, Json] = {"type": "object", "properties": {}}
# Beside one of these, "null" among the types would not yet allow null.
CONDITIONS = frozenset(
    {"$ref", "$dynamicRef", "$recursiveRef", "const", "enum", "allOf", "anyOf", "oneOf", "not", "if"}
)
MAX_NULLS = 10_000
EXPECTED = 'a function is {"name", "description", "parameters"}, alone or as the "function" of an OpenAI tool'


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A function to be called. `parameters` is its schema as written; in `schema_text` all may be null."""

    name: str
    description: str
    parameters: str
    schema_text: str

    @property
    def about(self) -> str:
        """What the model is told beside the schema."""
        what = f"{self.name} ({self.description})" if self.description else self.name
        return (
            f"Give the parameters for the function {what} that the user's message asks for. Take only what the "
            "message says. Where it does not say a value, write null: null means “not said”. Never guess."
        )


def nullable_parameters(function: Json) -> Function:
    """Read an OpenAI tool or a bare `{name, description, parameters}`. Raises SchemaRefused for anything else."""
    if isinstance(function, dict) and isinstance(function.get("function"), dict):
        function = function["function"]
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise SchemaRefused(f"The function has no name of 1 to 64 letters, digits, _ . or -; {EXPECTED}.")
    description = function.get("description") or ""
    if not isinstance(description, str):
        raise SchemaRefused(f"The description of the function {name} is no text; {EXPECTED}.")
    parameters = function.get("parameters") or NO_PARAMETERS
    if not isinstance(parameters, dict):
        raise SchemaRefused(f"The parameters of the function {name} are no JSON Schema of an object; {EXPECTED}.")
    text = json.dumps(parameters, ensure_ascii=False)
    Document(text)  # says so where it is over the limits
    return Function(
        name=name,
        description=description,
        parameters=text,
        schema_text=json.dumps(_with_nullable_properties(parameters), ensure_ascii=False),
    )


def split_missing(data: Json, function: Function) -> tuple[Json, tuple[str, ...]]:
    """Data by `schema_text` as parameters without the nulls, and the required ones that were not said.

    A parameter within another is named with dots: `address.city`. A null that the function itself allows is
    a value. Raises StructuredError when what is left does not satisfy the function's own schema.
    """
    validator = Validator(Document(function.parameters))
    unsaid = [path for path in _nulls(data) if not _allows_null(validator, data, path)]
    missing = tuple(".".join(map(str, path)) for path in unsaid if _is_required(validator, data, path))
    parameters = data
    for path in unsaid:
        parameters = _without(parameters, path)
    violations = [
        each for each in validator.violations(parameters) if not (missing and each.schema_path.endswith("/required"))
    ]
    if violations:
        raise StructuredError(
            f"Without what was not said, the parameters of {function.name} fail because {violations[0].message} "
            f"(at {violations[0].path or 'the top'}). Say more in the message, or require less.",
            "invalid_after_retries",
            candidate=parameters,
            violations=violations,
        )
    return parameters, missing


def _with_nullable_properties(schema: Json) -> Json:
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    for keyword in ("$defs", "definitions"):
        if isinstance(schema.get(keyword), dict):
            result[keyword] = {name: _with_nullable_properties(each) for name, each in schema[keyword].items()}
    if isinstance(schema.get("properties"), dict):
        result["properties"] = {
            name: _or_null(_with_nullable_properties(each)) for name, each in schema["properties"].items()
        }
    if isinstance(schema.get("items"), dict):
        result["items"] = _with_nullable_properties(schema["items"])
    return result


def _or_null(schema: Json) -> Json:
    """In place where that is possible: references may lead into the schema."""
    if not isinstance(schema, dict) or schema.keys() & CONDITIONS:
        return {"anyOf": [schema, {"type": "null"}]}
    if "type" not in schema:
        return schema
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return schema | {"type": [*types, *(["null"] if "null" not in types else [])]}


Path = tuple[str | int, ...]


def _nulls(value: Json, path: Path = ()) -> Iterator[Path]:
    """Where properties are null, the deepest first."""
    if not isinstance(value, dict | list):
        return
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _nulls(each, (*path, key))
        if each is None and isinstance(value, dict):
            yield (*path, key)


def _allows_null(validator: Validator, data: Json, path: Path) -> bool:
    return not any(each.path == pointer("", *path) for each in validator.violations(data, MAX_NULLS))


def _is_required(validator: Validator, data: Json, path: Path) -> bool:
    parent = pointer("", *path[:-1])
    return any(
        each.path == parent and each.schema_path.endswith("/required")
        for each in validator.violations(_without(data, path), MAX_NULLS)
    )


def _without(value: Json, path: Path) -> Json:
    """A copy that lacks the property at `path`."""
    result = copy.deepcopy(value)
    inner = result
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    return result
