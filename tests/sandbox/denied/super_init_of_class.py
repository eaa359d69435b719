# AttributeError: '__init__' is not accessible in a Runnable of super() in a method of the class
import json


class Encoder(json.JSONEncoder):
    @classmethod
    def initializer(cls):
        return super().__init__


class Runnable:
    def process(self, queries):
        Encoder.initializer()(json.JSONEncoder, default=str)
        return [json.dumps(object())]
