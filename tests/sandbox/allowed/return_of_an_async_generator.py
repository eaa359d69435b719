class Runnable:
    def process(self, queries):
        return [*self.made()]

    def made(self):
        yield 1
        return
