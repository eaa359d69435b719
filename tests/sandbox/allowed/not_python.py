class Runnable:
    def process(self, queries):
        return 1 + 2
