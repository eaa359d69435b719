# E202 '__builtins__' as a name is not allowed
class Runnable:
    def process(self, queries):
        import json as __builtins__
