# TypeError: object.__setattr__() is for an instance of a class of your own
class Runnable:
    def process(self, queries):
        object.__setattr__(json, "dumps", 1)
