# TypeError: 'GenericAlias' objects cannot be made by a call in a Runnable
from collections.abc import Callable


class Runnable:
    def process(self, queries):
        return [type(Callable[[int], int])(type(self), ((), {}))]
