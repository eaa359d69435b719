# AttributeError: 'register' is not accessible in a Runnable on a class that is not yours
from collections.abc import Sequence


class Runnable:
    def process(self, queries):
        class Lines:
            pass

        return [Sequence.register(Lines)]
