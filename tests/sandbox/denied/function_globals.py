# E202 the attribute '__globals__' is not allowed. Use a dict of your own.
class Runnable:
    def process(self, queries):
        def helper():
            pass

        return helper.__globals__
