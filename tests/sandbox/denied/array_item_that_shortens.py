# IndexError: array assignment index out of range
import array


class Shortens:
    def __index__(self):
        del cells[:]
        return 65


cells = array.array("B", bytes(100_000))


class Runnable:
    def process(self, queries):
        cells[90_000] = Shortens()
