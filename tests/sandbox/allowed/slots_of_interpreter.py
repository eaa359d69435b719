class Order:
    __slots__ = ("_price", "lines")

    def __init__(self, lines):
        self.lines = lines
        self._price = 2


class Runnable:
    def process(self, queries):
        return [Order(3).lines * Order(3)._price, hasattr(Order(1), "color")]
