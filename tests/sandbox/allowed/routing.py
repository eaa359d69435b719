"""match, with every kind of pattern."""
from dataclasses import dataclass
from enum import Enum
import math


class Kind(Enum):
    CLICK = "click"
    KEY = "key"


class Limits:
    MAX = 100
    MIN = 0


@dataclass
class Point:
    x: int
    y: int


@dataclass(frozen=True)
class Circle:
    center: Point
    radius: float


class Plain:
    __match_args__ = ("name", "size")

    def __init__(self, name, size):
        self.name = name
        self.size = size


class Shape:
    pass


@dataclass
class Square(Shape):
    side: float


def route(event):
    match event:
        case {"type": "order", "items": [first, *_], **rest} if rest:
            return f"order of {first} with {sorted(rest)}"
        case {"type": "order", "items": []}:
            return "empty order"
        case {"type": "user" | "admin" as role, "name": str(name)}:
            return f"{role} {name}"
        case {"kind": Kind.CLICK, "at": (x, y)}:
            return f"click {x},{y}"
        case {"value": int(n) | float(n)} if n > Limits.MAX:
            return f"over {n}"
        case {"value": Limits.MIN}:
            return "min"
        case {"value": True | None}:
            return "true or nothing"
        case {"nested": {"deep": [_, {"id": id_}]}}:
            return f"deep {id_}"
        case Point(0, 0):
            return "origin"
        case Point(x=0, y=y) | Point(x=y, y=0):
            return f"axis {y}"
        case Point(x, y) if x == y:
            return "diagonal"
        case Circle(Point(cx, _), radius=r):
            return f"circle {cx} {r}"
        case Plain(name, size=1):
            return f"plain {name}"
        case Square(side):
            return f"square {side}"
        case Shape():
            return "shape"
        case []:
            return "nothing"
        case [only]:
            return f"one {only}"
        case ["go", ("north" | "south") as way]:
            return f"go {way}"
        case ["take", *things]:
            return f"take {things}"
        case [first, *middle, last]:
            return f"{first}..{len(middle)}..{last}"
        case "quit" | "exit":
            return "bye"
        case -1 | 3.5 | 2j:
            return "number"
        case str() as text if text.startswith("#"):
            return f"comment {text[1:]}"
        case bytes(b):
            return f"bytes {len(b)}"
        case Kind.KEY:
            return "key"
        case math.pi:
            return "pi"
        case _:
            return "other"


def check_route():
    events = [
        {"type": "order", "items": ["pen"], "id": 1}, {"type": "order", "items": []}, {"type": "admin", "name": "ann"}, {"type": "user", "name": 1},
        {"kind": Kind.CLICK, "at": [1, 2]}, {"value": 101}, {"value": 0}, {"value": None}, {"nested": {"deep": [0, {"id": 7}]}},
        Point(0, 0), Point(0, 4), Point(5, 0), Point(3, 3), Point(1, 2), Circle(Point(1, 2), 3.0), Plain("p", 1), Plain("p", 2), Square(2), Shape(),
        [], [1], ["go", "north"], ["take", 1, 2, 3], [1, 2, 3, 4], (9, 8), "exit", -1, 3.5, "# hi", "text", b"ab", Kind.KEY, math.pi, None, 2j,
    ]
    return [route(event) for event in events]


def check_http():
    def status(code: int) -> str:
        match code:
            case 200 | 201:
                return "ok"
            case c if 400 <= c < 500:
                return "client"
            case int(c):
                return "other"
    return [status(c) for c in (200, 404, 500)]


def check_expression_tree():
    def evaluate(node):
        match node:
            case ("num", value):
                return value
            case ("add", left, right):
                return evaluate(left) + evaluate(right)
            case ("mul", left, right):
                return evaluate(left) * evaluate(right)
            case ("neg", inner):
                return -evaluate(inner)
            case unknown:
                raise ValueError(f"unknown node {unknown[0]!r}")
    tree = ("add", ("num", 2), ("mul", ("num", 3), ("neg", ("num", 4))))
    try:
        evaluate(("pow",))
    except ValueError as err:
        return [evaluate(tree), str(err)]


class Runnable:
    def process(self, queries):
        return [
            check_route(),
            check_http(),
            check_expression_tree(),
        ]
