# TypeError: Random.setstate() is for an instance of Random
import json
import random


class Runnable:
    def process(self, queries):
        return [random.Random.setstate(json, (3, (), "everyone's"))]
