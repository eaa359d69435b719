# ValueError: a field's name is an identifier that starts with a letter, not 'b=print(1)'
class Runnable:
    def process(self, queries):
        from collections import namedtuple

        return namedtuple("Point", ["a", "b=print(1)"])
