from pydantic import BaseModel


class Key(BaseModel):
    text: str


class Runnable:
    def process(self, queries):
        return Key(text="x").model_dump()
