# AttributeError: '__func__' is not accessible in a Runnable
class Runnable:
    def process(self, queries):
        import operator

        return operator.attrgetter("process.__func__")(self)
