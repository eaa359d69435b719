import copy
from collections import deque
from typing import Deque


class From:
    def __init__(self, at):
        self.at = at

    def __index__(self):
        return self.at


class Recent(deque):
    def index(self, value, *limits):
        return super().index(value, *limits) + 100


class Runnable:
    def process(self, queries):
        items = deque("abcabc", maxlen=10)
        both = items + deque("xy")
        twice = items * 2
        out = [items.index("c"), items.index("c", From(3)), items.index("b", -3, From(6)), deque.index(items, "a", 1)]
        for wrong in (lambda: items.index("z"), lambda: items.index("a", 1, 2), lambda: items.index("a", "b"), lambda: items.index()):
            try:
                wrong()
            except (ValueError, TypeError) as err:
                out.append(type(err).__name__)
        match items:
            case deque():
                out.append("deque")
        return [out, both, twice, both.maxlen, type(both) is deque, type(items.copy()) is deque, copy.copy(items), copy.deepcopy(items),
                Recent("ab").index("b"), repr(items), deque.__name__, deque.__module__, isinstance(items, Deque), items == deque("abcabc"),
                items[2], reversed(items) and list(reversed(items)), str(type(items))]
