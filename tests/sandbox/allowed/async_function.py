class Runnable:
    def process(self, queries):
        def fetch():
            return 1

        return fetch()
