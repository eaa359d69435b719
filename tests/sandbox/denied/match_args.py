# TypeError: __match_args__ is a tuple of attribute names, and '__dict__' cannot be one
class Runnable:
    def process(self, queries):
        class Point:
            __match_args__ = ("__dict__",)

        match Point():
            case Point(content):
                return content
