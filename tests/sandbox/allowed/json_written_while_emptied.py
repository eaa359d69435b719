import json
from collections import OrderedDict, defaultdict, namedtuple


class Pair(tuple):
    def __iter__(self):
        return (item * 10 for item in tuple.__iter__(self))


class Rows(list):
    def __len__(self):
        return 7


class Table(dict):
    def items(self):
        return [("b", 1), ("a", [2.5, None, True])]


class Money:
    def __init__(self, cents):
        self.cents = cents


class Encoder(json.JSONEncoder):
    def default(self, o):
        return o.cents if isinstance(o, Money) else super().default(o)


Point = namedtuple("Point", "x y")


def written(*args, **named):
    try:
        return json.dumps(*args, **named)
    except (TypeError, ValueError, RecursionError) as err:
        return type(err).__name__


class Runnable:
    def process(self, queries):
        circle = []
        circle.append({"a": circle})
        plain = {"b": [1, "x\u20ac", None], "a": (True, 1.5, 10**30), 3: {}}
        return [
            written([Pair((1, 2)), Point(1, 2), Rows([1, 2])]), written({"t": Table(x=1)}), written(Table(x=1), sort_keys=True),
            written(plain), written(plain, ensure_ascii=False, separators=(",", ":")), written(plain, indent=1),
            written({"b": 1, "a": [Money(5)]}, default=lambda money: money.cents, sort_keys=True),
            written({"a": Money(5)}, cls=Encoder), written([Money(5)], default=str.upper), written([Money(5)]),
            written({(1, 2): 3, "k": 4}, skipkeys=True), written({(1, 2): 3}), written(float("inf"), allow_nan=False),
            written(circle), written([[1], {"a": {}}], check_circular=False), Encoder().encode([Money(1), {}]),
            "".join(Encoder().iterencode([Money(1), {"a": Pair((3,))}])), written(OrderedDict(b=1, a=defaultdict(int, c=2))),
        ]
