from dataclasses import make_dataclass


class Runnable:
    def process(self, queries):
        Order = make_dataclass("Order", ["lines"], namespace={"__len__": lambda self: self.lines})
        return [len(Order(3)), Order(3) == Order(3)]
