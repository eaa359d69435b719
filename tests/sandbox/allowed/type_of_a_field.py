from pydantic import BaseModel


class Runnable:
    def process(self, queries):
        class Order(BaseModel):
            tags: list[str]

        return Order(tags=("a", "b")).model_dump()
