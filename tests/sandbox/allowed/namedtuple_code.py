class Runnable:
    def process(self, queries):
        from collections import namedtuple
        from typing import NamedTuple

        Point = namedtuple("Point", "x y", defaults=[7])

        class Size(NamedTuple):
            width: int
            height: int = 2

            def area(self):
                return self.width * self.height

        point = Point(1)
        x, y = point
        return [
            point, x, y, point._asdict(), point._replace(y=3), Point._fields, Point._make([4, 5]), repr(point), point == (1, 7),
            Size(3).area(), Size(width=1, height=1)._asdict(), isinstance(Size(1), tuple), point.x, point[1],
        ]
