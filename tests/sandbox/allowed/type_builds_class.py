class Runnable:
    def process(self, queries):
        class Made:
            pass

        return [type(1) is int, type(Made()).__name__, type([]) == list, isinstance(Made, type), type(Made) is type, Made.__name__]
