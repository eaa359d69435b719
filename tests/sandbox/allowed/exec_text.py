class Runnable:
    def process(self, queries):
        actions = {"double": lambda n: n * 2}
        return actions["double"](2)
