# E202 the attribute '__setstate__' is not allowed
class Runnable:
    def process(self, queries):
        import functools

        return functools.partial(print).__setstate__((len, (), {}, {}))
