# TypeError: type() takes one argument in a Runnable; write a class statement
class Runnable:
    def process(self, queries):
        return type("Made", (str,), {"__getattr__": None})
