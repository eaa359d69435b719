# E201 'return' with value in async generator.
class Runnable:
    async def process(self, queries):
        yield 1
        return 2
