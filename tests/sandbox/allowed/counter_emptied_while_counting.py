from collections import Counter
from decimal import Decimal


class Runnable:
    def process(self, queries):
        counts = Counter("abca")
        counts.update(x for x in ["a", "z"])
        counts.update({"z": 2})
        sums = Counter()
        sums["x"] = Decimal("1.5")
        sums.update(["x", ("t", 1)])
        return [dict(counts), counts.most_common(1), str(sums["x"]), sums[("t", 1)], dict(counts + Counter("b"))]
