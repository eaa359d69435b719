# ValueError: generator already executing
from itertools import count


class Advances(int):
    def __add__(self, other):
        next(counting)
        return Advances(1)


counting = count(Advances(5), Advances(2))


class Runnable:
    def process(self, queries):
        next(counting)
        return next(counting)
