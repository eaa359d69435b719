# AttributeError: 'frozenset' object has no attribute 'add'
import hashlib


class Runnable:
    def process(self, queries):
        return [hashlib.algorithms_guaranteed.add("sum")]
