# TypeError: a class in a Runnable cannot derive from 'type'
class Runnable:
    def process(self, queries):
        class Meta(type):
            pass
