class Runnable:
    def process(self, queries):
        return list(map(getattr, ["a"], ["upper"]))[0]()
