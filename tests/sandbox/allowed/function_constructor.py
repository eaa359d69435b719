class Runnable:
    def process(self, queries):
        function = lambda: 1
        return [type(function).__name__, isinstance(len, type(sum)), type(function) is type(lambda: 2)]
