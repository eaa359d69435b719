# E202 the attribute '__dict__' is not allowed. Name the attributes, or use dataclasses.asdict.
class Runnable:
    def process(self, queries):
        return self.__dict__
