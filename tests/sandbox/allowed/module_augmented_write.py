class Runnable:
    def process(self, queries):
        self.total = 1
        self.total += 2
        self.items = [1]
        alias = self.items
        self.items += [2]
        counts = {"a": {"b": 1}}
        counts["a"]["b"] += 1
        counts["a"].setdefault("c", []).append(3)
        return [self.total, alias, counts]
