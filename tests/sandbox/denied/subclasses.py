# E202 the attribute '__subclasses__' is not allowed. Keep a list of your classes, filled in
class Runnable:
    def process(self, queries):
        return object.__subclasses__()
