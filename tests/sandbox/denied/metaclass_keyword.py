# E202 the class argument 'metaclass' is not allowed. Use inheritance or a class decorator.
class Runnable:
    def process(self, queries):
        class Made(metaclass=type):
            pass
