from pydantic import BaseModel, Field


class Runnable:
    def process(self, queries):
        class Order(BaseModel):
            number: int = Field(3, description="no", examples=[4])

        return Order().number
