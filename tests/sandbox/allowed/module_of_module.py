class Runnable:
    def process(self, queries):
        return json.loads("[1, 2]")
