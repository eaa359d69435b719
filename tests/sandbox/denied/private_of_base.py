# AttributeError: 'Runnable' object has no attribute '_voice'
class Runnable:
    def process(self, queries):
        return self._voice
