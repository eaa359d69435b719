# AttributeError: '__reduce__' is not accessible in a Runnable
class Runnable:
    def process(self, queries):
        return list(map(getattr, [self], ["__reduce__"]))
