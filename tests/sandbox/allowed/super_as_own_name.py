class Runnable:
    def process(self, queries):
        superior = 1
        return [superior]
