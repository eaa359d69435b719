# E202 'except*' is not allowed. Write 'except'.
class Runnable:
    def process(self, queries):
        try:
            1 / 0
        except* ZeroDivisionError:
            pass
