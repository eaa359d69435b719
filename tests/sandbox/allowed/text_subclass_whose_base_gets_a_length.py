class Base:
    pass


class Row(Base, list):
    pass


class Runnable:
    def process(self, queries):
        setattr(Base, "__len__", lambda self: 3)
        return [len(Base()), len(Row([1]))]
