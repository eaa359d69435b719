import collections
import copy
from collections import OrderedDict


class Recent(OrderedDict):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self.size:
            self.popitem(last=False)


class Upper(OrderedDict):
    def __setitem__(self, key, value):
        super().__setitem__(key.upper(), value)


class Runnable:
    def process(self, queries):
        recent = Recent(3)
        for name in "abcad":
            recent[name] = len(recent)
        items = OrderedDict(a=1, b=2, c=3)
        items.move_to_end("a")
        items.move_to_end("c", last=False)
        first = items.popitem(last=False)
        other = OrderedDict([("a", 1), ("b", 2)])
        long = OrderedDict((n, n) for n in range(2000))
        order = [long.popitem(last=False)[0] for _ in range(1990)]
        try:
            items.pop("none")
        except KeyError as err:
            missing = str(err)
        return [list(recent), list(items.items()), first, items == other, dict(items) == items, items != other, repr(other), list(reversed(other)),
                list(other | {"z": 1}), list({"y": 0} | other), items.pop("q", 5), items.setdefault("n", 4), order == list(range(1990)), list(long),
                list(OrderedDict.fromkeys("xyx")), isinstance(items, dict), type(items.copy()) is OrderedDict, missing, list(copy.deepcopy(other).items()),
                dict(Upper({"a": 1}, b=2)), isinstance(recent, collections.OrderedDict), items.popitem(), f"{len(items)}"]
