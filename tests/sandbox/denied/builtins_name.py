# E202 '__builtins__' is not allowed. Use the built-in functions by name.
class Runnable:
    def process(self, queries):
        return __builtins__["open"]
