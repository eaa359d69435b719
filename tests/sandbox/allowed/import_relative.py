TABLE = {"a": 1}

class Runnable:
    def process(self, queries):
        return TABLE
