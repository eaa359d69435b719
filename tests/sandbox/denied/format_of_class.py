# AttributeError: 'format' is not accessible in a Runnable
class Runnable:
    def process(self, queries):
        return list(map(str.format, ["{0.__class__.__mro__}"], [1]))
