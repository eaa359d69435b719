# TypeError: __len__ of a class derived from str or bytes cannot be defined in a Runnable
class Base:
    pass


class Separator(Base, bytes):
    pass


class Runnable:
    def process(self, queries):
        setattr(Base, "__len__", lambda self: 1)
