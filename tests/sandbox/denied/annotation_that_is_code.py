# UnsupportedError: Order.number is a (lambda: 1)(), which a model cannot have in a Runnable
from pydantic import BaseModel


class Runnable:
    def process(self, queries):
        class Order(BaseModel):
            number: (lambda: 1)()
