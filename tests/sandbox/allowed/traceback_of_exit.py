class Runnable:
    def process(self, queries):
        class Manager:
            def __enter__(self):
                return self

            def __exit__(self, kind, err, trace):
                self.seen = kind.__name__
                return True

        with Manager() as manager:
            1 / 0
        return manager.seen
