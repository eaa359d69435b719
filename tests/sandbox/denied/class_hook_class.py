# E202 '__class__' as a name is not allowed
class Runnable:
    def process(self, queries):
        class Liar:
            __class__ = int

        return isinstance(Liar(), int)
