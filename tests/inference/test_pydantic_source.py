"""A Pydantic model's source, read and never run, says what the model itself would say."""

from __future__ import annotations

import textwrap
from typing import Any

import pydantic
import pytest

from localllm.inference.json_schema.imports import ImportProblem
from localllm.inference.json_schema.pydantic_source import from_pydantic

HEAD = """
from __future__ import annotations
import datetime
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Dict, List, Literal, Optional, Union
from uuid import UUID
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, PositiveInt, field_validator
"""
SOURCES = {
    "plain types": """
        class Model(BaseModel):
            a: str
            b: int = 3
            c: float | None = None
            d: bool = False
            when: datetime.datetime
            on: datetime.date
            id: UUID
            count: PositiveInt
    """,
    "containers": """
        class Model(BaseModel):
            a: list[str]
            b: List[int] = []
            c: dict[str, float]
            d: set[str]
            e: tuple[int, str]
            f: tuple[int, ...]
            g: Optional[Dict[str, int]]
            h: Union[int, str]
    """,
    "limits": """
        class Model(BaseModel):
            a: int = Field(ge=1, le=10, description="From 1 to 10")
            b: float = Field(gt=0, lt=1)
            c: str = Field(min_length=2, max_length=5, pattern="^[a-z]+$")
            d: list[int] = Field(default_factory=list, max_length=3)
            e: Optional[str] = Field(None, max_length=9)
            f: Annotated[int, Field(multiple_of=5)] = 5
    """,
    "choices": """
        class Size(str, Enum):
            small = "S"
            large = "L"

        class Level(IntEnum):
            low = 1
            high = 2

        class Model(BaseModel):
            size: Size
            level: Level
            mood: Literal["glad", "sad"]
    """,
    "nested, ahead and inherited": '''
        class Base(BaseModel):
            id: int

        class Item(Base):
            """One line."""

            name: str

        class Model(Base):
            items: list["Item"]
            first: Item | None = None
    ''',
    "recursive": """
        class Model(BaseModel):
            name: str
            children: list["Model"]
    """,
    "configured": """
        class Model(BaseModel):
            model_config = ConfigDict(extra="forbid")
            name: str = Field(alias="fullName")
    """,
    "an alias of a type": """
        Money = Annotated[float, Field(ge=0)]

        class Model(BaseModel):
            price: Money
            costs: list[Money]
    """,
}


def as_said(schema: Any) -> Any:
    """Without titles, and with what says the same in one way."""
    if isinstance(schema, list):
        return [as_said(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    said = {key: as_said(value) for key, value in schema.items() if not (key == "title" and isinstance(value, str))}
    if "enum" in said:
        said.pop("type", None)
    return said


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_it_says_what_pydantic_says(source: str) -> None:
    source = HEAD + textwrap.dedent(source)
    names: dict[str, Any] = {"__name__": __name__}
    exec(source, names)
    model = names["Model"]
    assert issubclass(model, pydantic.BaseModel)
    model.model_rebuild(_types_namespace=names)
    assert as_said(from_pydantic(source).schema) == as_said(model.model_json_schema())


def test_it_takes_the_class_that_no_other_uses() -> None:
    assert from_pydantic("class A(BaseModel):\n x: 'B'\nclass B(BaseModel):\n y: int").schema["title"] == "A"


def test_it_runs_nothing(tmp_path: Any) -> None:
    trace = tmp_path / "trace"
    source = f"open({str(trace)!r}, 'w')\nclass A(BaseModel):\n    x: int = Field(default=open({str(trace)!r}, 'w'))"
    assert from_pydantic(source).schema["properties"] == {"x": {"type": "integer"}}
    assert not trace.exists()


def test_it_says_that_a_validator_was_left_out() -> None:
    source = "class A(BaseModel):\n    x: int\n    @field_validator('x')\n    def even(cls, x): return x"
    assert from_pydantic(source).notes == ("The validator even (line 4) is code and was left out.",)


PROBLEMS = {
    "x = 1": "There is no class",
    "class A(BaseModel):\n    x: int =": "Line 2, column 13: this is not Python",
    "class A(BaseModel):\n    x: Money": "Line 2: the type `Money` is not known here",
    "class A(BaseModel):\n    x: Foo[int]": r"Line 2: `Foo\[…\]` is not known here",
    "class A(BaseModel):\n    x: int = Field(ge=f())": "Line 2: `f\\(\\)` would have to be run",
    "class A(BaseModel):\n    x: 1 + 1": "Line 2: `1 \\+ 1` is no type",
    "class A(BaseModel):\n    x: Literal['\\ud800']": "Line 2: .* is no JSON",
    "class A(BaseModel):\n    x: " + "a." * 30_000 + "b": "nests too deep",
    "class A(BaseModel):\n    x: int\0": "is not Python",
    "A0 = int\n"
    + "\n".join(f"A{n} = tuple[A{n - 1}, A{n - 1}]" for n in range(1, 40))
    + "\nclass M(BaseModel):\n    x: A39": "more than 10,000 types",
    "#" * 300_000: "at most 262,144 can be read",
}


@pytest.mark.parametrize("source", PROBLEMS, ids=lambda source: source[:30])
def test_it_names_what_it_cannot_read(source: str) -> None:
    with pytest.raises(ImportProblem, match=PROBLEMS[source]):
        from_pydantic(source)
