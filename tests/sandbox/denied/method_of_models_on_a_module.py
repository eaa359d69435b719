# TypeError: BaseModel.model_copy() is for an instance of BaseModel
import json

from pydantic import BaseModel


class Runnable:
    def process(self, queries):
        return BaseModel.model_copy(json, update={"dumps": None})
