# AttributeError: a module's attributes cannot be set in a Runnable
class Runnable:
    def process(self, queries):
        math.pi += 1
