# TypeError: type() takes one argument in a Runnable
class Runnable:
    def process(self, queries):
        return type(type(self))("Made", (), {})
