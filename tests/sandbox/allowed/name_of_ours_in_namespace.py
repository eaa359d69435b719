from dataclasses import asdict, make_dataclass


class Runnable:
    def process(self, queries):
        return [asdict(make_dataclass("Order", ["lines", ("price", float, 2.5)])([1]))]
