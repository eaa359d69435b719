# AttributeError: 'fget' is not accessible in a Runnable
class Runnable:
    def process(self, queries):
        return property(len).fget
