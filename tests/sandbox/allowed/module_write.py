class Runnable:
    def process(self, queries):
        dumps = str
        self.dumps = dumps
        return self.dumps({})
