# ValueError: generator already executing
from itertools import islice


class Steps:
    def __iter__(self):
        return self

    def __next__(self):
        for _ in steps:
            pass
        return 1


steps = islice(Steps(), 5)


class Runnable:
    def process(self, queries):
        return list(steps)
