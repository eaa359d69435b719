class Runnable:
    def process(self, queries):
        for query in [1]:
            return query
