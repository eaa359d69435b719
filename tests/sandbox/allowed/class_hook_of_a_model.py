from pydantic import BaseModel


class Order(BaseModel):
    number: int

    def __init__(self, **values):
        super().__init__(number=values["n"])

    def __len__(self):
        return self.number


class Runnable:
    def process(self, queries):
        return [len(Order(n=2)), Order.model_validate({"n": 3}).number]
