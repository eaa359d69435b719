# ValueError: attempt to assign sequence of size 50 to extended slice of size 1
def emptying():
    cells.clear()
    cells.append(0)
    for _ in range(50):
        yield bytearray(8)


cells = [1] * 100


class Runnable:
    def process(self, queries):
        cells[::2] = emptying()
