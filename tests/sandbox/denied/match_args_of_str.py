# TypeError: __match_args__ is a tuple of attribute names, and 'format' cannot be one
class Runnable:
    def process(self, queries):
        class Line(str):
            __match_args__ = ("format",)

        match Line("{0.gi_frame}"):
            case Line(fill):
                return [fill(number for number in queries)]
