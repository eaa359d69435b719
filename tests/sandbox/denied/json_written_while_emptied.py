# ValueError: [[1, 2]]
import json


class Empties(tuple):
    def __iter__(self):
        items.clear()
        kept.append([bytearray(b"A" * 8 * n) for n in range(1, 200)])
        return iter((1, 2))


items, kept = [], []


class Runnable:
    def process(self, queries):
        for _ in range(50):
            items[:] = [Empties((1, 2)) for _ in range(300)]
            text = json.dumps(items)
        raise ValueError(text)
