"""A schema's way to a grammar that llguidance decodes by, and the report of what that grammar enforces.

Runs where a hostile schema may burn time and memory: in a process of its own (see `compiler.py`).
"""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec
from llguidance import LLMatcher

from localllm.inference.engine.lookahead import EFFORT, ENDLESS, Lookahead
from localllm.inference.json_schema import patterns
from localllm.inference.json_schema.algebra import REFERENCE, children
from localllm.inference.json_schema.document import Document
from localllm.inference.json_schema.errors import SchemaRefused
from localllm.inference.json_schema.lowering import Lowered, Note, lower
from localllm.inference.json_schema.validator import Validator

Whitespace = Literal["bounded", "compact"]
ExtraProperties = Literal["schema", "forbid"]

# A blank, or one line break with an indent. Without a bound a model may write blanks for ever.
WHITESPACE: dict[Whitespace, dict[str, Any]] = {
    "bounded": {"whitespace_pattern": r"(\x20|\n\x20{0,32})"},
    "compact": {"whitespace_flexible": False},
}
# What llguidance says, and the keywords to leave to the check afterwards when it does.
WAYS_OUT: tuple[tuple[str, frozenset[str]], ...] = (
    ("patternProperty regexes", frozenset({"patternProperties"})),
    ("min/maxProperties", frozenset({"minProperties", "maxProperties"})),
    ("multipleOf", frozenset({"multipleOf"})),
    ("lookarounds", frozenset({"pattern"})),
    ("Unable to determine if regex is empty", frozenset({"format"})),
)
BRANCHING = frozenset({"dependencies", "dependentSchemas", "dependentRequired", "if", "not", "oneOf"})
MAX_EXAMPLES = 256
MAX_OPEN = 500  # properties named by an object that may have others; with 2,000 a token took 200 ms
LAST_RESORT = frozenset(
    {"$ref", "anyOf", "minProperties", "maxProperties", "patternProperties", "pattern", "format", "uniqueItems"}
)


class CompiledSchema(msgspec.Struct, frozen=True, kw_only=True):
    """What decoding needs of a schema, and what its author should know. `digest` names the grammar."""

    digest: str
    text: str
    grammar: str
    shortest: str  # the shortest valid instance that was found, as JSON; '' when none was
    examples: tuple[str, ...]  # texts that fit its patterns: a document can be ended with them
    notes: tuple[Note, ...]

    @property
    def unenforced(self) -> tuple[Note, ...]:
        """Keywords that are checked after decoding only."""
        return tuple(note for note in self.notes if note.action == "checked")

    @property
    def is_exact(self) -> bool:
        return not self.unenforced


def compile_schema(
    text: str, *, whitespace: Whitespace = "bounded", extra_properties: ExtraProperties = "forbid"
) -> CompiledSchema:
    """Check, lower and compile. Raises SchemaRefused."""
    document = Document(text)
    validator = Validator(document)
    validator.check_schema()
    lowered = decodable(document)
    schema = lowered.schema
    if extra_properties == "forbid":
        narrower = closed(schema)
        if not LLMatcher.validate_grammar(to_grammar(narrower, whitespace)):
            schema = narrower
    _refuse_too_open(schema)
    grammar, examples = to_grammar(schema, whitespace), _examples(schema)
    shortest = _shortest(grammar, examples)
    return CompiledSchema(
        digest=f"{document.digest}-{whitespace}-{extra_properties}",
        text=text,
        grammar=grammar,
        shortest=shortest if validator.is_valid(json.loads(shortest)) else "",
        examples=tuple(examples),
        notes=lowered.notes,
    )


def to_grammar(schema: Any, whitespace: Whitespace) -> str:
    body = schema if isinstance(schema, dict) else {"allOf": [schema]}
    return LLMatcher.grammar_from_json_schema(json.dumps(body), overrides=WHITESPACE[whitespace])  # type: ignore[arg-type]


def _shortest(grammar: str, examples: list[str]) -> str:
    ending = next(Lookahead(grammar, examples).endings(EFFORT), None)
    if ending is None:
        raise SchemaRefused(ENDLESS, kind="unsatisfiable")
    return ending.decode("utf-8", "replace")


def _examples(schema: Any) -> list[str]:
    """One text for each pattern, the shortest first."""
    regexes: dict[str, None] = {}
    ahead = [schema]
    while ahead:
        value = ahead.pop()
        if isinstance(value, dict):
            regexes |= dict.fromkeys([value["pattern"]] if "pattern" in value else [])
            regexes |= dict.fromkeys(value.get("patternProperties", {}))
        ahead += children(value)
    texts = {text for regex in list(regexes)[:MAX_EXAMPLES] if (text := patterns.example(regex))}
    return sorted(texts, key=lambda text: (len(text), text))


def decodable(document: Document) -> Lowered:
    """Lower exactly; where llguidance will not have it, once more with less."""
    relaxed: frozenset[str] = frozenset()
    inline = is_rewritten = False
    error = ""
    for more in (frozenset[str](), BRANCHING, LAST_RESORT):
        relaxed |= more
        for _ in range(4):
            try:
                lowered = lower(document, relaxed, inline=inline)
            except RecursionError:
                error = "it refers to itself in too many ways"
                break
            is_rewritten = any(note.action == "rewritten" for note in lowered.notes)
            error = LLMatcher.validate_grammar(to_grammar(lowered.schema, "bounded"))
            if not error:
                return lowered
            if "circular references" in error and not inline:
                inline = True
            elif less := _way_out(error) - relaxed:
                relaxed |= less
            else:
                break
        # A rewritten schema may contradict itself where the written one does not: ask once more without.
        if error.startswith("Unsatisfiable") and (more or not is_rewritten):
            raise SchemaRefused(
                f"No value can satisfy this schema: {_first_line(error)}. Loosen what contradicts.",
                kind="unsatisfiable",
            )
    raise SchemaRefused(f"This schema cannot be decoded by: {_first_line(error)}.")


def _way_out(error: str) -> frozenset[str]:
    return next((keywords for sign, keywords in WAYS_OUT if sign in error), frozenset())


def _first_line(error: str) -> str:
    line = error.removeprefix("Unsatisfiable schema: ").partition("\n")[0].strip().rstrip(".")
    return line if len(line) < 200 else line[:200] + " …"


def closed(schema: Any) -> Any:
    """Forbid properties that an object schema does not name, where that only narrows.

    Not where the object is one part of a larger condition: another part may name them.
    """
    parts = _part_names(schema) if isinstance(schema, dict) else set()
    return _closed(schema, False, parts)


def _closed(schema: Any, is_part: bool, parts: set[str]) -> Any:
    if isinstance(schema, list):
        return [_closed(each, is_part, parts) for each in schema]
    if not isinstance(schema, dict):
        return schema
    is_part = is_part or _is_condition(schema)
    result = dict(schema)
    for keyword, value in schema.items():
        if keyword in ("properties", "patternProperties"):
            result[keyword] = {name: _closed(each, is_part, parts) for name, each in value.items()}
        elif keyword == "$defs":
            result[keyword] = {name: _closed(each, name in parts, parts) for name, each in value.items()}
        elif keyword in ("allOf", "anyOf", "items", "prefixItems", "additionalProperties"):
            result[keyword] = _closed(value, is_part, parts)
    names = schema.get("properties", {})
    if (
        not is_part
        and names
        and not schema.keys() & {"patternProperties", "minProperties"}
        and ("additionalProperties" not in schema or len(names) > MAX_OPEN)
        and set(schema.get("required", [])) <= set(names)
    ):
        result["additionalProperties"] = False
    return result


def _refuse_too_open(schema: Any) -> None:
    names = schema.get("properties", {}) if isinstance(schema, dict) else {}
    if len(names) > MAX_OPEN and schema.get("additionalProperties") is not False:
        raise SchemaRefused(
            f"An object names {len(names):,} properties and may have others: each token would take too long. "
            f"Say “additionalProperties: false”, or name at most {MAX_OPEN}.",
            keyword="additionalProperties",
        )
    for each in children(schema):
        _refuse_too_open(each)


def _is_condition(schema: dict[str, Any]) -> bool:
    return "allOf" in schema or ("anyOf" in schema and bool(schema.keys() - {"$defs", "anyOf"}))


def _part_names(schema: dict[str, Any]) -> set[str]:
    """Names of the definitions that are met below a condition, with all that they refer to."""
    found: set[str] = set()
    ahead: list[tuple[Any, bool]] = [(schema, False)]
    while ahead:
        value, is_part = ahead.pop()
        if isinstance(value, dict):
            is_part = is_part or _is_condition(value)
            name = value["$ref"].removeprefix(REFERENCE) if is_part and "$ref" in value else None
            if name is not None and name not in found:
                found.add(name)
                ahead.append((schema["$defs"][name], True))
            ahead += [(each, is_part) for each in children({**value, "$defs": {}})]
            ahead += [(each, False) for each in value.get("$defs", {}).values()]
    return found
