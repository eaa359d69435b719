class Point:
    def __new__(cls, x):
        self = super().__new__(cls)
        self.x = x
        return self


class Runnable:
    def process(self, queries):
        return [Point(1).x, type(object.__new__(Point)).__name__]
