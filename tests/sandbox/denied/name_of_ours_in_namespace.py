# TypeError: make_dataclass() takes names that are plain str and identifiers
from dataclasses import make_dataclass


class Runnable:
    def process(self, queries):
        return [make_dataclass("Order", ["lines"], namespace={"~dataclass": {"lines.__class__": 1}})]
