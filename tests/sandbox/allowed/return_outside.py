class Runnable:
    def process(self, queries):
        if not queries:
            return
        return [query for query in queries]
