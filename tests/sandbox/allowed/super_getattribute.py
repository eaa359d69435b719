class Runnable:
    def process(self, queries):
        return super().__repr__().startswith("<")
