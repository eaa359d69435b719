class Doubled(list):
    def __iter__(self):
        return iter([n * 2 for n in range(5)])


class Runnable:
    def process(self, queries):
        cells = list(range(10))
        cells[::2] = Doubled()
        return cells
