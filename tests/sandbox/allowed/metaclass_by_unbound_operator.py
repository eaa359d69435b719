class Runnable:
    def process(self, queries):
        class Money:
            def __init__(self, cents):
                self.cents = cents

            def __add__(self, other):
                return Money(self.cents + other.cents)

            __radd__ = __add__

            def __eq__(self, other):
                return isinstance(other, Money) and self.cents == other.cents

            def __hash__(self):
                return hash(self.cents)

            def __lt__(self, other):
                return self.cents < other.cents

            def __repr__(self):
                return f"Money({self.cents})"

            def __format__(self, spec):
                return format(self.cents / 100, spec or ".2f")

            def __bool__(self):
                return self.cents != 0

        return [repr(Money(1) + Money(2)), f"{Money(250)}", sorted([Money(2), Money(1)]) == [Money(1), Money(2)], bool(Money(0))]
