class Runnable:
    def process(self, queries):
        return getattr(self, "missing", None)
