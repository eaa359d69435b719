# TypeError: '__class__' cannot be a field's name
class Runnable:
    def process(self, queries):
        from dataclasses import dataclass

        @dataclass
        class Point:
            __class__: int

        return Point(int)
