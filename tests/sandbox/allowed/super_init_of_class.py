import json


class Encoder(json.JSONEncoder):
    def __init__(self, **options):
        super().__init__(**options | {"sort_keys": True})

    def default(self, o):
        return "an object"

    @classmethod
    def short(cls):
        return cls(separators=(",", ":"))


class Runnable:
    def process(self, queries):
        return [Encoder.short().encode({"b": 1, "a": object()}), json.dumps({"b": 1}, cls=Encoder)]
