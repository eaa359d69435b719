# E202 'except*' is not allowed. Write 'except': there are no groups of exceptions here.
class Runnable:
    def process(self, queries):
        try:
            1 / 0
        except* ZeroDivisionError:
            pass
