from typing import NamedTuple


class Point(NamedTuple):
    x: int
    y: int = 0


class Runnable:
    def process(self, queries):
        match Point(1, 2):
            case Point(x, y=2):
                return [x]
