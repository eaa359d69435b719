# UnsupportedError: Order.tags is a set, which a model cannot have in a Runnable: it has str, int, float, bool, list, dict, datetime, Any, Optional, Union, Literal and models. `language: python` has all of pydantic
from pydantic import BaseModel


class Runnable:
    def process(self, queries):
        class Order(BaseModel):
            tags: set[str]
