# E202 '__builtins__' as a name is not allowed
class Runnable:
    def process(self, queries):
        global __builtins__
        return []
