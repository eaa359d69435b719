import copy
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from decimal import Decimal


@dataclass
class Order:
    lines: list = field(default_factory=list)
    around: object = None


class Sizes(dict):
    pass


class Refused(ValueError):
    def __init__(self, why):
        super().__init__(why)
        self.why = [why]


class Runnable:
    def process(self, queries):
        order = Order([1, [2]])
        order.around = order
        deep, shallow = copy.deepcopy(order), copy.copy(order)
        deep.lines[1].append(3)
        sizes = Sizes(a=[1])
        sizes.unit = ["m"]
        kept = copy.deepcopy(sizes)
        kept["a"].append(2)
        kept.unit.append("cm")
        refused = copy.deepcopy(Refused("no"))
        held = [deque([1], 2), Counter("ab"), OrderedDict(a=1), Decimal("1.5"), (1, [2]), {3}, None, b"x"]
        groups = defaultdict(list, a=[1])
        copied = copy.deepcopy(groups)
        copied["b"].append(1)
        return [
            order.lines, deep.lines, deep.around is deep, shallow.lines is order.lines, sizes, sizes.unit,
            kept, kept.unit, type(kept).__name__, refused.why, str(refused), copy.deepcopy(held) == held,
            repr(copy.deepcopy(held)) == repr(held), dict(groups), dict(copied), copy.copy(len) is len,
        ]
