class Runnable:
    def process(self, queries):
        from types import SimpleNamespace

        space = SimpleNamespace(a=1, _b=2)
        space.c = 3
        return [space.a, space.c]
