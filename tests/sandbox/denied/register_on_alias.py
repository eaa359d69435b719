# AttributeError: 'register' is not accessible in a Runnable on a class that is not yours
from collections.abc import Mapping


class Runnable:
    def process(self, queries):
        return [Mapping[str, int].register(dict)]
