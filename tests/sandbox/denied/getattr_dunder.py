# AttributeError: '__globals__' is not accessible in a Runnable
class Runnable:
    def process(self, queries):
        def helper():
            pass

        return getattr(helper, "__glo" + "bals__")
