from collections import defaultdict


class Tally(defaultdict):
    def __init__(self, *args):
        super().__init__(int, *args)

    def __or__(self, other):
        merged = Tally(self)
        merged.update(other)
        return merged


class Settings(dict):
    def __new__(cls, *args):
        if not made:
            made.append(super().__new__(cls))
        return made[0]


made = []


class Runnable:
    def process(self, queries):
        tally = Tally({"a": 1})
        tally["b"] += 2
        again = Settings({"a": 1})
        return [tally | {"c": 3}, type(tally | {}) is Tally, Settings(), again is Settings({"b": 2}), again,
                defaultdict(list, {"a": [1]}) | {"b": []}, defaultdict(None, [("x", 1)], y=2)]
