# AttributeError: '__reduce_ex__' is not accessible in a Runnable
class Runnable:
    def process(self, queries):
        self.__dict__.update(__reduce_ex__=lambda version: (setattr, (json, "dumps", 1)))
