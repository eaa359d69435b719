class Runnable:
    def process(self, queries):
        process = self.helper if hasattr(self, "helper") else len
        return process([1])
