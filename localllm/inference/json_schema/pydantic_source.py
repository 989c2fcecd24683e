"""JSON Schema from the source of a Pydantic model, as its `model_json_schema()` would say it.

The source is parsed with `ast` and never run: what only running would tell is refused by line, or noted.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, NoReturn

from localllm.inference.json_schema.imports import MAX_CHARS, Draft, ImportProblem, Json
from localllm.inference.json_schema.reading import dumps

SIMPLE: dict[str, Json] = {
    "str": {"type": "string"}, "StrictStr": {"type": "string"}, "bytes": {"type": "string"},
    "SecretStr": {"type": "string"}, "Path": {"type": "string"},
    "int": {"type": "integer"}, "StrictInt": {"type": "integer"},
    "PositiveInt": {"type": "integer", "exclusiveMinimum": 0}, "NonNegativeInt": {"type": "integer", "minimum": 0},
    "NegativeInt": {"type": "integer", "exclusiveMaximum": 0}, "NonPositiveInt": {"type": "integer", "maximum": 0},
    "float": {"type": "number"}, "StrictFloat": {"type": "number"}, "FiniteFloat": {"type": "number"},
    "Decimal": {"type": "number"},
    "PositiveFloat": {"type": "number", "exclusiveMinimum": 0}, "NonNegativeFloat": {"type": "number", "minimum": 0},
    "NegativeFloat": {"type": "number", "exclusiveMaximum": 0}, "NonPositiveFloat": {"type": "number", "maximum": 0},
    "bool": {"type": "boolean"}, "StrictBool": {"type": "boolean"}, "None": {"type": "null"},
    "Any": {}, "object": {}, "dict": {"type": "object"}, "Dict": {"type": "object"},
    "list": {"type": "array"}, "List": {"type": "array"}, "tuple": {"type": "array"},
    "set": {"type": "array", "uniqueItems": True}, "Set": {"type": "array", "uniqueItems": True},
    "datetime": {"type": "string", "format": "date-time"}, "AwareDatetime": {"type": "string", "format": "date-time"},
    "date": {"type": "string", "format": "date"}, "PastDate": {"type": "string", "format": "date"},
    "FutureDate": {"type": "string", "format": "date"}, "time": {"type": "string", "format": "time"},
    "timedelta": {"type": "string", "format": "duration"}, "UUID": {"type": "string", "format": "uuid"},
    "UUID4": {"type": "string", "format": "uuid"}, "EmailStr": {"type": "string", "format": "email"},
    "AnyUrl": {"type": "string", "format": "uri"}, "AnyHttpUrl": {"type": "string", "format": "uri"},
    "HttpUrl": {"type": "string", "format": "uri"}, "IPv4Address": {"type": "string", "format": "ipv4"},
    "IPv6Address": {"type": "string", "format": "ipv6"},
}  # fmt: skip
LISTS = frozenset({"list", "List", "Sequence", "Iterable", "Collection"})
SETS = frozenset({"set", "Set", "frozenset", "FrozenSet", "AbstractSet"})
MAPPINGS = frozenset({"dict", "Dict", "Mapping", "MutableMapping"})
TUPLES = frozenset({"tuple", "Tuple"})
CONSTRAINED = {"constr": "str", "conint": "int", "confloat": "float", "condecimal": "Decimal"}
BOUNDS = {
    "ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum", "multiple_of": "multipleOf",
    "pattern": "pattern", "regex": "pattern", "min_items": "minItems", "max_items": "maxItems",
}  # fmt: skip
LENGTHS = {
    "min_length": {"string": "minLength", "array": "minItems", "object": "minProperties"},
    "max_length": {"string": "maxLength", "array": "maxItems", "object": "maxProperties"},
}
SAID = ("title", "description", "examples")
MAX_TYPES = 10_000
VALIDATORS = frozenset({"validator", "field_validator", "root_validator", "model_validator"})


def from_pydantic(source: str) -> Draft:
    """The schema of the last class that no other one uses. Raises ImportProblem."""
    if len(source) > MAX_CHARS:
        raise ImportProblem(f"The source is {len(source):,} characters long; at most {MAX_CHARS:,} can be read.")
    try:
        draft = _Source(ast.parse(source)).draft()
        draft.text.encode()
    except SyntaxError as exc:
        raise ImportProblem(
            f"Line {exc.lineno or 1}, column {exc.offset or 1}: this is not Python: {exc.msg}."
        ) from None
    except ImportProblem:
        raise
    except (ValueError, RecursionError, MemoryError):
        raise ImportProblem("The source cannot be read: it nests too deep or holds what is no text.") from None
    return draft


class _Source:
    def __init__(self, tree: ast.Module) -> None:
        self._classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        self._aliases = dict(_aliases(tree))
        self._defs: dict[str, Json] = {}
        self._notes: list[str] = []
        self._num_types = 0

    def draft(self) -> Draft:
        root = self._root()
        schema = self._named(root)
        body = self._defs[root.name]
        if not _refers(self._defs, root.name):
            del self._defs[root.name]
            schema = {"title": root.name, **body}
        return Draft(schema | ({"$defs": self._defs} if self._defs else {}), tuple(self._notes))

    def _root(self) -> ast.ClassDef:
        models = [node for node in self._classes.values() if not _is_enum(node) and node.name != "Config"]
        if not models:
            raise ImportProblem("There is no class in this source. Paste `class Name(BaseModel): …` and what it uses.")
        used = {name for node in models for name in self._names_in(node)}
        return next((node for node in reversed(models) if node.name not in used), models[-1])

    def _names_in(self, cls: ast.ClassDef) -> Iterator[str]:
        for node in ast.walk(cls):
            if isinstance(node, ast.Name):
                yield node.id
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in self._classes:
                yield node.value  # a reference ahead

    def _named(self, cls: ast.ClassDef) -> Json:
        if cls.name not in self._defs:
            self._defs[cls.name] = {}  # it may refer to itself
            self._defs[cls.name] = self._enum(cls) if _is_enum(cls) else self._model(cls)
        return {"$ref": f"#/$defs/{cls.name}"}

    def _enum(self, cls: ast.ClassDef) -> Json:
        values = [_literal(node.value) for node in cls.body if isinstance(node, ast.Assign)]
        if not values or not all(isinstance(value, str | int) for value in values):
            _refuse(cls, f"the values of {cls.name} are not written out as texts or whole numbers")
        return _described({"enum": values}, cls)

    def _model(self, cls: ast.ClassDef) -> Json:
        for base in cls.bases:
            if isinstance(base, ast.Subscript) and _last_name(base.value) == "RootModel":
                return _described(self._type(base.slice), cls)
        schema: Json = _described({"type": "object", "properties": {}}, cls)
        required: list[str] = []
        for owner in self._lineage(cls).values():
            for node in owner.body:
                self._member(node, schema, required)
        if required:
            schema["required"] = required
        return schema

    def _lineage(self, cls: ast.ClassDef, below: frozenset[str] = frozenset()) -> dict[str, ast.ClassDef]:
        """Its bases in this source, the furthest first, and itself."""
        found: dict[str, ast.ClassDef] = {}
        for base in reversed(cls.bases):
            known = self._classes.get(_last_name(base))
            if known is not None and known.name not in below | {cls.name}:
                found |= self._lineage(known, below | {cls.name} | found.keys())
        return found | {cls.name: cls}

    def _member(self, node: ast.stmt, schema: Json, required: list[str]) -> None:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if not node.target.id.startswith("_") and _last_name(node.annotation) != "ClassVar":
                self._property(node.target.id, node, schema, required)
        elif isinstance(node, ast.Assign) and _last_name(node.targets[0]) == "model_config":
            schema |= _configured(node.value)
        elif isinstance(node, ast.FunctionDef):
            decorators = {_last_name(each.func if isinstance(each, ast.Call) else each) for each in node.decorator_list}
            if decorators & VALIDATORS:
                self._notes.append(f"The validator {node.name} (line {node.lineno}) is code and was left out.")

    def _property(self, name: str, node: ast.AnnAssign, schema: Json, required: list[str]) -> None:
        value = self._type(node.annotation)
        own = list(_fields_in(node.value))
        for call in own:
            value = self._constrained(value, call)
        calls = [*_fields_in(node.annotation), *own]
        for call in calls:
            name = _alias(call) or name
        default = _default(node.value, calls)
        if isinstance(default, ast.Constant | ast.List | ast.Dict | ast.UnaryOp) and _is_literal(default):
            value = value | {"default": _literal(default)}
        schema["properties"][name] = value
        if default is None and name not in required:
            required.append(name)
        elif default is not None and name in required:
            required.remove(name)  # given a default by a class further down

    def _type(self, node: ast.expr) -> Json:
        self._num_types += 1
        if self._num_types > MAX_TYPES:  # aliases of aliases double at each step
            _refuse(node, f"more than {MAX_TYPES:,} types are written here or stand behind a name. Import fewer")
        match node:
            case ast.Constant(value=None):
                return {"type": "null"}
            case ast.Constant(value=str(text)):
                return self._type(ast.parse(text, mode="eval").body)
            case ast.BinOp(op=ast.BitOr()):
                return _any_of([self._type(node.left), self._type(node.right)])
            case ast.Name() | ast.Attribute():
                return self._of_name(node, _last_name(node))
            case ast.Subscript():
                inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
                return self._of_generic(node, _last_name(node.value), inner)
            case ast.Call():
                return self._of_call(node, _last_name(node.func))
        return _refuse(node, f"`{ast.unparse(node)[:60]}` is no type that can be read")

    def _of_name(self, node: ast.expr, name: str) -> Json:
        if name in self._classes:
            return self._named(self._classes[name])
        if name in self._aliases:
            return self._type(self._aliases[name])
        if name in SIMPLE:
            return dict(SIMPLE[name])
        return _refuse(node, f"the type `{name}` is not known here. Paste its definition too, or use a plain type")

    def _of_generic(self, node: ast.expr, name: str, inner: list[ast.expr]) -> Json:
        if name == "Literal":
            return {"enum": [_literal(each) for each in inner]}
        if name == "Optional":
            return _any_of([self._type(inner[0]), {"type": "null"}])
        if name == "Union":
            return _any_of([self._type(each) for each in inner])
        if name == "Annotated":
            schema = self._type(inner[0])
            for call in _fields_in(node):
                schema = self._constrained(schema, call)
            return schema
        if name in LISTS:
            return {"type": "array", "items": self._type(inner[0])}
        if name in SETS:
            return {"type": "array", "items": self._type(inner[0]), "uniqueItems": True}
        if name in MAPPINGS:
            return {"type": "object", "additionalProperties": self._type(inner[-1])}
        if name in TUPLES:
            return self._tuple(inner)
        return _refuse(node, f"`{name}[…]` is not known here. Use list, dict, Optional, Union, Literal or a class")

    def _tuple(self, inner: list[ast.expr]) -> Json:
        if len(inner) == 2 and _is_ellipsis(inner[1]):
            return {"type": "array", "items": self._type(inner[0])}
        items = [self._type(each) for each in inner]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}

    def _of_call(self, node: ast.Call, name: str) -> Json:
        if name in CONSTRAINED:
            return self._constrained(SIMPLE[CONSTRAINED[name]], node)
        if name == "conlist" and node.args:
            return self._constrained({"type": "array", "items": self._type(node.args[0])}, node)
        return _refuse(node, f"`{name}(…)` is not known here. Use a plain type with Field(…)")

    def _constrained(self, schema: Json, call: ast.Call) -> Json:
        said = {word.arg: word.value for word in call.keywords if word.arg}
        schema = _bounded(schema, {name: _literal(said[name]) for name in (*BOUNDS, *LENGTHS) if name in said})
        schema = schema | {name: _literal(said[name]) for name in SAID if name in said}
        extra = said.get("json_schema_extra")
        return schema | _literal(extra) if isinstance(extra, ast.Dict) else schema


def _bounded(schema: Json, bounds: dict[str, Any]) -> Json:
    """`schema` with limits; in a choice, each alternative but null gets them."""
    if "anyOf" in schema:
        branches = [each if each.get("type") == "null" else _bounded(each, bounds) for each in schema["anyOf"]]
        return schema | {"anyOf": branches}
    limits = {
        BOUNDS.get(name) or LENGTHS[name].get(schema.get("type", "string"), "minLength"): value
        for name, value in bounds.items()
    }
    return schema | limits


def _aliases(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """`Name = Literal[...]` and the like, which classes use as types."""
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.expr):
            yield target.id, value


def _any_of(schemas: list[Json]) -> Json:
    branches = [each for schema in schemas for each in (schema["anyOf"] if schema.keys() == {"anyOf"} else [schema])]
    return {"anyOf": branches}


def _described(schema: Json, cls: ast.ClassDef) -> Json:
    text = ast.get_docstring(cls)
    return {"description": text, **schema} if text else schema


def _configured(config: ast.expr) -> Json:
    said = {word.arg: word.value for word in config.keywords} if isinstance(config, ast.Call) else {}
    title = {"title": _literal(said["title"])} if "title" in said else {}
    forbids = "extra" in said and _literal(said["extra"]) == "forbid"
    return title | ({"additionalProperties": False} if forbids else {})


def _fields_in(node: ast.expr | None) -> Iterator[ast.Call]:
    """The calls of Field(…) in an annotation or a default."""
    if isinstance(node, ast.Call) and _last_name(node.func) in ("Field", "StringConstraints"):
        yield node
    elif (
        isinstance(node, ast.Subscript) and _last_name(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple)
    ):
        for each in node.slice.elts[1:]:
            yield from _fields_in(each)


def _default(value: ast.expr | None, calls: list[ast.Call]) -> ast.expr | None:
    """What the property is when it is left out; None when it must be there."""
    given = None if value in calls else value
    for call in calls:
        words = {word.arg: word.value for word in call.keywords}
        given = given or (call.args[0] if call.args else words.get("default") or words.get("default_factory"))
    return None if given is None or _is_ellipsis(given) else given


def _alias(call: ast.Call) -> str | None:
    names = [word.value for word in call.keywords if word.arg == "alias"]
    return str(_literal(names[0])) if names else None


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis


def _is_enum(cls: ast.ClassDef) -> bool:
    return any(_last_name(base).endswith("Enum") for base in cls.bases)


def _refers(defs: dict[str, Json], name: str) -> bool:
    ahead: list[Json] = list(defs.values())
    while ahead:
        value = ahead.pop()
        if isinstance(value, dict):
            if value.get("$ref") == f"#/$defs/{name}":
                return True
            ahead += value.values()
        elif isinstance(value, list):
            ahead += value
    return False


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):
        return _last_name(node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _is_literal(node: ast.expr) -> bool:
    try:
        dumps(ast.literal_eval(node)).encode()
    except (ValueError, TypeError):  # code, or no JSON
        return False
    return True


def _literal(node: ast.expr) -> Any:
    if not _is_literal(node):
        _refuse(node, f"`{ast.unparse(node)[:60]}` would have to be run, or is no JSON. Write the value itself there")
    return ast.literal_eval(node)


def _refuse(node: ast.AST, why: str) -> NoReturn:
    raise ImportProblem(f"Line {getattr(node, 'lineno', 1)}: {why}.")
