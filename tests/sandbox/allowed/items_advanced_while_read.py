class Items:
    def __init__(self, items):
        self.items = items

    def __getitem__(self, at):
        return self.items[at]


class Named(Items):
    def __iter__(self):
        return iter(["own"])


class Late:
    pass


Late.__getitem__ = lambda self, at: [4, 5][at]


class Runnable:
    def process(self, queries):
        first, *rest = Items("abc")
        return [list(Items([1, 2])), first, rest, "c" in Items("abc"), list(Named("x")), [n for n in Late()], dict(zip(Items("ab"), Items("cd")))]
