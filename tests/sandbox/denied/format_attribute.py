# AttributeError: '__globals__' is not accessible in a Runnable
class Runnable:
    def process(self, queries):
        return "{0.process.__globals__}".format(self)
