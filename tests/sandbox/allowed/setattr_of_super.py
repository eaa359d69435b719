class Order:
    def __setattr__(self, name, value):
        super().__setattr__(name, value * 2)


class Runnable:
    def process(self, queries):
        order = Order()
        order.lines = 2
        return [order.lines]
