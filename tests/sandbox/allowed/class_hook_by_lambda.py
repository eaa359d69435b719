class Runnable:
    def process(self, queries):
        class Doubled:
            __call__ = lambda self, number: number * 2
            __slots__ = ("_memo", "size")

        doubled = Doubled()
        doubled.size = 1
        doubled._memo = 2
        try:
            doubled.other = 3
        except AttributeError:
            return [doubled(4), doubled.size, doubled._memo]
