# TypeError: object.__new__() is for a class derived from it
import json


class Runnable:
    def process(self, queries):
        return [object.__new__(json.JSONEncoder)]
