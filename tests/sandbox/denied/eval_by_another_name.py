# E202 'eval' is not allowed
class Runnable:
    def process(self, queries):
        run = eval
        return run("1 + 1")
