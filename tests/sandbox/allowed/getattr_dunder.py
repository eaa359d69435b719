class Runnable:
    def process(self, queries):
        return [getattr("abc", "upper")(), getattr(self, "missing", 1), hasattr([], "append")]
