# E202 'async for' is not allowed. Write 'for'.
class Runnable:
    def process(self, queries):
        return (item async for item in queries)
