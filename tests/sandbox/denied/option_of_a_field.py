# UnsupportedError: Field does not take 'alias' in a Runnable; it takes default, default_factory, ge, gt, le, lt, max_length, min_length, pattern, description, examples, title. `language: python` has all of pydantic
from pydantic import BaseModel, Field


class Runnable:
    def process(self, queries):
        class Order(BaseModel):
            number: int = Field(alias="no")
