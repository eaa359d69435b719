# ValueError: attempt to assign sequence of size 50 to extended slice of size 1
class Emptying(list):
    def __iter__(self):
        cells.clear()
        cells.append(0)
        return iter([bytearray(8)] * 50)


cells = [1] * 100


class Runnable:
    def process(self, queries):
        cells[::2] = Emptying()
