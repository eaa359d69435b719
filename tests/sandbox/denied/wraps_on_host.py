# TypeError: wraps() takes only the wrapped function in a Runnable
class Runnable:
    def process(self, queries):
        import functools

        def evil():
            return 1

        functools.wraps(evil, assigned=("__code__",))(json.dumps)
