# TypeError: total_ordering() is for a class of your own
class Runnable:
    def process(self, queries):
        import functools

        functools.total_ordering(int)
