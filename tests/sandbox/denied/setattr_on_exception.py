# TypeError: Exception.__setattr__() is for an instance of a class derived from it
class Runnable:
    def process(self, queries):
        Exception.__setattr__(ValueError("a"), "why", 1)
        return []
