from pydantic import BaseModel

Number = int


class Runnable:
    def process(self, queries):
        class Order(BaseModel):
            number: Number

        return Order(number="1").number
