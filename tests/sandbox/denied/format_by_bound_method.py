# TypeError: 'method' objects cannot be made by a call in a Runnable
class Runnable:
    def process(self, queries):
        method = type(self.process)
        return method(str, 1).format("{0.__class__.__mro__}", 1)
