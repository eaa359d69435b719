class Runnable:
    def process(self, queries):
        return [item for item in [1, 2]]
