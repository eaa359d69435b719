# TypeError: '<' not supported between instances of 'Empties' and 'Empties'
class Quiet:
    generator = None

    def __lt__(self, other):
        return NotImplemented


class Empties:
    def __eq__(self, other):
        return False

    def __lt__(self, other):
        left.clear()
        right.clear()
        return NotImplemented


def compare(times):
    for _ in range(times):
        try:
            Quiet() < Quiet()
        except TypeError:
            pass


def comparing():
    try:
        yield
    finally:
        compare(40)
        kept.extend(bytearray(n) for n in range(200))


left, right, kept = [Empties()], [Empties()], []


class Runnable:
    def process(self, queries):
        compare(16)
        loud = Quiet()
        loud.generator = comparing()
        next(loud.generator)
        try:
            loud < Quiet()
        except TypeError:
            pass
        del loud
        compare(15)
        return left < right
