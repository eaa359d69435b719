# TypeError: __match_args__ is a tuple of attribute names, and '__getattribute__' cannot be one
from typing import NamedTuple


class Runnable:
    def process(self, queries):
        class Point(NamedTuple):
            x: int
            __match_args__ = ("__getattribute__",)

        match Point(1):
            case Point(get):
                return [get("__class__")]
