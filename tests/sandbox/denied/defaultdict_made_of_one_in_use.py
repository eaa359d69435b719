# TypeError: __new__ of a class derived from defaultdict cannot be defined in a Runnable
from collections import defaultdict


class Runnable:
    def process(self, queries):
        class Same(defaultdict):
            def __new__(cls, *args):
                return made[0] if made else super().__new__(cls)

        made = []
        return Same()
