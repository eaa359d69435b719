class Runnable:
    def process(self, queries):
        import functools

        def logged(function):
            @functools.wraps(function)
            def inner(*args, **kwargs):
                return [inner.__name__, function(*args, **kwargs)]
            return inner

        @logged
        def double(number, *, by=2):
            return number * by

        @functools.lru_cache(maxsize=None)
        def fibonacci(n):
            return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

        class Circle:
            @functools.cached_property
            def _area(self):
                return 3

        @functools.total_ordering
        class Rank:
            def __init__(self, n):
                self.n = n

            def __eq__(self, other):
                return self.n == other.n

            def __lt__(self, other):
                return self.n < other.n

        return [
            double(2), double(2, by=5), fibonacci(30), functools.reduce(lambda a, b: a + b, [1, 2]), functools.partial(double, by=3)(1),
            Circle()._area, Rank(1) <= Rank(2), sorted([3, 1], key=functools.cmp_to_key(lambda a, b: a - b)),
        ]
