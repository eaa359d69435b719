# E202 '__import__' is not allowed. Write an import statement.
class Runnable:
    def process(self, queries):
        return __import__("os")
