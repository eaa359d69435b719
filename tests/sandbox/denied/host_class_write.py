# AttributeError: attributes of 'type' objects cannot be set in a Runnable
class Runnable:
    def process(self, queries):
        dict.keys = None
