# AttributeError: '__dict__' is not accessible in a Runnable
class Runnable:
    def process(self, queries):
        return list(map(getattr, [self], ["__dict__"]))
