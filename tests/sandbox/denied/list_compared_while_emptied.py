# TypeError: '<' not supported between instances of 'Empties' and 'Empties'
class Empties:
    def __eq__(self, other):
        return False

    def __lt__(self, other):
        left.clear()
        right.clear()
        other_things.extend(bytearray(n) for n in range(200))
        return NotImplemented


left, right, other_things = [Empties()], [Empties()], []


class Runnable:
    def process(self, queries):
        return left < right
