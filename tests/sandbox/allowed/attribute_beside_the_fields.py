from pydantic import BaseModel


class Order(BaseModel):
    number: int


class Runnable:
    def process(self, queries):
        made = Order(number=1)
        setattr(made, "number", 2)
        return made.number
