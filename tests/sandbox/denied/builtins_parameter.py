# E202 '__builtins__' as a name is not allowed
class Runnable:
    def process(self, queries):
        def helper(__builtins__, /):
            return len([])

        return helper({})
