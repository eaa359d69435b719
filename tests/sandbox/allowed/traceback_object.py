class Runnable:
    def process(self, queries):
        try:
            try:
                1 / 0
            except ZeroDivisionError as err:
                raise ValueError("no price") from err
        except ValueError as err:
            return [type(err).__name__, str(err), err.args, repr(err.__cause__), err.__cause__ is not None]
