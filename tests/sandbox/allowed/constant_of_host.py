import hashlib


class Runnable:
    def process(self, queries):
        names = set(hashlib.algorithms_guaranteed)
        names.add("sum")
        return [sorted(name for name in names if name.startswith("s"))]
