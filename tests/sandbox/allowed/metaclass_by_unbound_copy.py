class Runnable:
    def process(self, queries):
        from collections import ChainMap, Counter

        counts = Counter("aab")
        other = counts.copy()
        other.update("b")
        merged = ChainMap({"a": 1}, {"b": 2}).new_child({"c": 3})
        return [counts.most_common(), other.total(), counts + other == Counter(a=4, b=3), dict(merged)]
