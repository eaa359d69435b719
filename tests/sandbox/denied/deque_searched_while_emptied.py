# ValueError: 5 is not in deque
from collections import deque


class Empties:
    def __index__(self):
        items.clear()
        items.extend([7] * 1000)
        kept.extend(bytearray(528) for _ in range(50))
        return 0


kept = []
items = deque(maxlen=5000)
items.extendleft([6] * 2000)


class Runnable:
    def process(self, queries):
        return items.index(5, Empties())
