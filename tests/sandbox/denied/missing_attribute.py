# AttributeError: 'Runnable' object has no attribute 'missing'
class Runnable:
    def process(self, queries):
        return self.missing
