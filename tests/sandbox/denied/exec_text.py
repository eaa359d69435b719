# E202 'exec' is not allowed
class Runnable:
    def process(self, queries):
        exec("x = 1")
