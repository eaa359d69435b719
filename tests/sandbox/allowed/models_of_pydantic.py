from __future__ import annotations
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator, ValidationError
from datetime import datetime
from typing import Optional, Union, Literal, List, Dict, Any, Annotated
class Item(BaseModel):
    """An item."""
    name: str
    price: float = Field(0.5, ge=0, lt=100, description="euros")
    tags: list[str] = Field(default_factory=list, max_length=2)
class Order(BaseModel):
    id: int
    at: Optional[datetime] = None
    items: list[Item] = []
    kind: Literal["a", "b", 3] = "a"
    by: Dict[str, Item] = {}
    code: str = Field("abc", min_length=2, pattern="^[a-z]+$")
    flag: bool = False
    some: Union[int, str, None] = None
    any: Any = None
    n: Annotated[int, Field(ge=1)] = 5
    @field_validator("code")
    @classmethod
    def lower(cls, value):
        if value == "bad": raise ValueError("no bad")
        return value.strip()
    @model_validator(mode="after")
    def whole(self):
        assert self.id != 13, "unlucky"
        return self
def attempt(**values):
    try:
        made = Order(**values)
        return made.model_dump(), repr(made), made.model_dump_json(), made.model_dump(exclude_unset=True)
    except ValidationError as err:
        return [(e["type"], e["loc"], e["msg"]) for e in err.errors()]
class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    a: int = 1
    b: list = []
class Base(BaseModel):
    a: int
    @field_validator("*", mode="before")
    @classmethod
    def doubled(cls, value, info):
        return value * 2 if info.field_name != "c" else [value, sorted(info.data)]
class Derived(Base):
    b: str = "x"
    c: list = []
    def total(self):
        return self.a + len(self.b)
class Loose(BaseModel):
    model_config = {"extra": "allow"}
    a: int = 1
class Checked(BaseModel):
    a: int
    _seen: int = 0
    @model_validator(mode="before")
    @classmethod
    def wrapped(cls, data):
        return {"a": data["b"]} if "b" in data else data
class Tree(BaseModel):
    value: int
    children: list["Tree"] = []
    parent: "Tree | None" = None
def frozen():
    try:
        Frozen().a = 2
    except ValidationError as err:
        return err.errors()[0]["type"], err.title, err.error_count()
def forbidding():
    try:
        Frozen(c=1, d=2)
    except ValidationError as err:
        return [(e["type"], e["loc"], e["msg"]) for e in err.errors()]
def loose():
    made = Loose(b=[1])
    made.c = 3
    return made.b, made.model_dump(), repr(made)
def inherited():
    made = Derived(a=2, b="y", c=1)
    return made.total(), made.model_dump(), made == Derived(a=2, b="y", c=1), dict(made), str(made)
def nested():
    class Outer(BaseModel):
        class Inner(BaseModel):
            x: int
        inner: Inner | None = None
        many: list[Inner] = []
        fixed: Literal["x"] = "x"
        plain: dict = {}
    made = Outer(inner={"x": 1}, many=[Outer.Inner(x=2), {"x": "3"}])
    return made.model_dump(), json.dumps(Outer.model_json_schema(), sort_keys=True), made.inner.x, isinstance(made.many[1], Outer.Inner)
def copied():
    made = Order(id=1, items=[{"name": "a"}])
    other = made.model_copy(update={"id": 2})
    try:
        made.nothing = 1
    except ValueError as err:
        text = str(err)
    made.id = 5
    return (other.id, made.id, text, sorted(made.model_fields_set), made.model_dump(include={"id"}),
        made.model_dump(exclude={"items", "at", "by"}, exclude_none=True), other.model_dump(exclude_defaults=True))
def before():
    return Checked(b=3).a, Checked.model_validate({"a": "4"}).a, Checked.model_validate_json('{"a": 5}').a
def tree():
    made = Tree(value=1, children=[{"value": 2, "children": [{"value": "3"}]}])
    return made.model_dump(), made.children[0].children[0].value
class Ordered(BaseModel):
    x: list
    @field_validator("x", mode="before")
    @classmethod
    def first(cls, value):
        return [*value, "first"]
    @field_validator("x", mode="before")
    @classmethod
    def second(cls, value):
        return [*value, "second"]
    @field_validator("x")
    @classmethod
    def third(cls, value):
        return [*value, "third"]
    @field_validator("x")
    @classmethod
    def fourth(cls, value):
        return [*value, "fourth"]
class Runnable:
    def process(self, queries):
        out = [attempt(), attempt(id="7"), attempt(id=1.5), attempt(id="x", kind="c", flag="maybe", some=[1]),
          attempt(id=13), attempt(id=1, code="bad"), attempt(id=1, code="A"), attempt(id=1, code="a"),
          attempt(id=1, items=[{"name":"x"}, {"price": "12"}, 5, {"name": 1, "price": -1, "tags": ["a","b","c"]}]),
          attempt(id=1, items={"name":"x"}), attempt(id=True, at="2024-01-02T03:04:05Z", by={"x": {"name": "y", "price": 200}}),
          attempt(id=1, at="2024-01-02T03:04:05+00:00", by={"x": {"name": "y", "price": 20}}, n=0), attempt(id=1, at=datetime(2024, 1, 2), some="5", flag="yes"),
          attempt(id=None, items=None, by=[], code=5, flag=None, n="x"),attempt(id=float("nan")), attempt(id="1.0", some=True), attempt(id=1, flag=2), attempt(id=1, flag=0.5),
          attempt(id=1,items=({"name":"q"},)), attempt(id=2, some=2.5), attempt(id=[]), attempt(id="1_000"), attempt(id=" 5 ")]
        out.append(json.dumps(Order.model_json_schema(), sort_keys=True))
        out += [attempt(id=1, some=x) for x in (1.0, "x", True, b"y", {"a": 1})]
        out += [attempt(id=1, flag=x) for x in (1, 0, "T", "off", 1.0, 0.0, "2", [])]
        out += [attempt(id=1, items=[{"name": "n", "price": x}]) for x in (1, "1e3", "x", None, True, 99.5, 100)]
        out += [attempt(id=x) for x in (1e300, "-5", "+5", "5.5", "", "0x1", 10**30)]
        out += [more() for more in (frozen, forbidding, loose, inherited, nested, copied, before, tree)]
        out.append(Order.model_validate({"id": 4}) == Order(id=4))
        out.append(str(Order(id=4, extra=1)))
        out.append(Ordered(x=[]).x)
        return out
