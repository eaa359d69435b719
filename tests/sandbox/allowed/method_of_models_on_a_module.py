from pydantic import BaseModel


class Order(BaseModel):
    number: int


class Runnable:
    def process(self, queries):
        return BaseModel.model_copy(Order(number=1), update={"number": 2}).number
