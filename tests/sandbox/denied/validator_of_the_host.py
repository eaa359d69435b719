# TypeError: a validator is a method of your own model
import statistics

from pydantic import BaseModel, field_validator


class Runnable:
    def process(self, queries):
        class Order(BaseModel):
            number: int
            check = field_validator("number")(statistics.mean)
