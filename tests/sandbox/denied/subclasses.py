# E202 the attribute '__subclasses__' is not allowed. Keep a list of your classes.
class Runnable:
    def process(self, queries):
        return object.__subclasses__()
