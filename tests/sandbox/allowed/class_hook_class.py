class Runnable:
    def process(self, queries):
        class Meter(float):
            def __repr__(self):
                return f"{float(self)} m"

        return [isinstance(Meter(2), float), repr(Meter(2.5)), Meter(1) + 1]
