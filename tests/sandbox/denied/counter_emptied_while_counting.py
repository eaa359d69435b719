# TypeError: unsupported operand type(s) for +: 'Empties' and 'int'
from collections import Counter


class Empties:
    def __add__(self, other):
        counts.clear()
        return NotImplemented


counts = Counter()
counts["a"] = Empties()


class Runnable:
    def process(self, queries):
        counts.update(["a"])
