import random


class Runnable:
    def process(self, queries):
        numbers = random.Random(7)
        state = numbers.getstate()
        first = numbers.gauss(0, 1)
        numbers.setstate(state)
        return [first == numbers.gauss(0, 1)]
