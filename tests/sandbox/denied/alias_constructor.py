# TypeError: 'GenericAlias' objects cannot be made by a call in a Runnable
class Runnable:
    def process(self, queries):
        return type(list[int])(str, int).format("{0.__class__.__mro__}", 1)
