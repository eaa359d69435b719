class Runnable:
    def process(self, queries):
        import operator
        from collections import namedtuple

        Point = namedtuple("Point", ["x", "y"])
        points = [Point(2, 1), Point(1, 5)]
        return [sorted(points, key=operator.attrgetter("x"))[0].y, operator.itemgetter(1)([1, 2]), operator.methodcaller("upper")("a")]
