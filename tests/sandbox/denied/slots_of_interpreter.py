# TypeError: __slots__ names '__dict__', which cannot be an attribute in a Runnable
class Runnable:
    def process(self, queries):
        class Order:
            __slots__ = ("lines", "__dict__")

        return [Order()]
