class Runnable:
    def process(self, queries):
        from dataclasses import dataclass

        class Point:
            __match_args__ = ("x", "_y")

            def __init__(self):
                self.x, self._y = 1, 2

        @dataclass
        class Size:
            width: int
            height: int = 2

        found = []
        for value in (Point(), Size(5)):
            match value:
                case Point(x, y):
                    found.append((x, y))
                case Size(width, height=h):
                    found.append((width, h))
        return found
