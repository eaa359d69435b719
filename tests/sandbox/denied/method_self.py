# E202 the attribute '__self__' is not allowed
class Runnable:
    def process(self, queries):
        return self.process.__self__
