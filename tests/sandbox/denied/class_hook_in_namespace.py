# TypeError: __del__ cannot be defined in a Runnable
from dataclasses import make_dataclass


class Runnable:
    def process(self, queries):
        return [make_dataclass("Order", ["lines"], namespace={"__del__": len})]
