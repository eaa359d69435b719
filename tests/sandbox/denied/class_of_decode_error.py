# TypeError: a class in a Runnable cannot derive from 'UnicodeDecodeError'
class Runnable:
    def process(self, queries):
        class Mine(UnicodeDecodeError):
            pass
