from collections.abc import Mapping


class Runnable:
    def process(self, queries):
        return [isinstance({}, Mapping), issubclass(dict, Mapping)]
