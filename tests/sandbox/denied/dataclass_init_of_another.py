# TypeError: Point.__init__() is for an instance of a class derived from it
class Runnable:
    def process(self, queries):
        from dataclasses import dataclass

        @dataclass
        class Point:
            dumps: int

        Point.__init__(json, 5)
        return json.dumps
