class Runnable:
    def process(self, queries):
        import json as builtins

        return builtins.dumps(1)
