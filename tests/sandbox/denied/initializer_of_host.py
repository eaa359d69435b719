# AttributeError: '__init__' is not accessible in a Runnable; call the class
import textwrap


class Runnable:
    def process(self, queries):
        textwrap.TextWrapper.__init__(self, 10)
        return [self.width]
