# RuntimeError: no key was compared in 100 reads
from collections import OrderedDict


class Key:
    def __hash__(self):
        return 1

    def __eq__(self, other):
        if is_armed:
            items.clear()
        return False


is_armed = []
items = OrderedDict((Key(), n) for n in range(5))


class Runnable:
    def process(self, queries):
        is_armed.append(True)
        for _ in range(100):
            list(items)
        if len(items) == 5:
            raise RuntimeError("no key was compared in 100 reads")
