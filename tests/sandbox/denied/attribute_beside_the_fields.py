# ValueError: "Order" object has no field "format_map"
from pydantic import BaseModel


class Order(BaseModel):
    number: int


class Runnable:
    def process(self, queries):
        setattr(Order(number=1), "format_map", print)
