from collections import UserList


class Cells(list):
    def __setitem__(self, at, value):
        super().__setitem__(at, value)
        self.last = at


class Grid:
    def __init__(self):
        self.seen = []

    def __getitem__(self, at):
        return at

    def __setitem__(self, at, value):
        self.seen.append((at.start, at.stop, at.step, value))


class Runnable:
    def process(self, queries):
        cells = list(range(10))
        cells[::2] = (n * n for n in range(5))
        cells[slice(1, 10, 2)] = "abcde"
        cells[0] += 5
        cells[5:2:-1] = {1: 0, 2: 0, 3: 0}
        mine = Cells(range(4))
        mine[::2] = iter("xy")
        grid = Grid()
        grid[1:2:3] = "v"
        other = UserList([1, 2, 3])
        other[::2] = iter("pq")
        table = {}
        table["a"] = table["b"] = 1
        (cells[1], *rest), table["c"] = (7, 8), 9
        cells.__setitem__(slice(None, None, 5), iter([0, 0]))
        return [cells, mine, grid.seen, list(other), table, rest, isinstance(grid[1:2], slice), grid[::2].step]
