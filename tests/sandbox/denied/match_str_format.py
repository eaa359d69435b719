# E202 'format' in a class pattern is not allowed
class Runnable:
    def process(self, queries):
        match "{0.__class__.__mro__}":
            case str(format=fill):
                return fill(1)
