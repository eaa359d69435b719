from collections.abc import Callable


class Runnable:
    def process(self, queries):
        def twice(function: Callable[[int], int], number: int) -> int:
            return function(function(number))

        return [twice(lambda number: number + 1, 1), isinstance(twice, Callable)]
