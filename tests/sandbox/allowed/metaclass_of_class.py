class Runnable:
    def process(self, queries):
        return [type(self).__name__, self.__class__.__name__, type(self) is Runnable, isinstance(self, Runnable)]
