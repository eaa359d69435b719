class Runnable:
    def process(self, queries):
        def helper(_builtins, /, _import=1, *, _class=2):
            return [_builtins, _import, _class]

        return helper(0, _class=3)
