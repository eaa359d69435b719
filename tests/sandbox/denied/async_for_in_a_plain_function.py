# E201 'async for' outside async function.
class Runnable:
    def process(self, queries):
        async for query in queries:
            return query
