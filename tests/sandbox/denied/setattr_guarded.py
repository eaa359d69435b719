# AttributeError: attributes of 'builtin_function_or_method' objects cannot be set
class Runnable:
    def process(self, queries):
        setattr(json.loads.__init__ if False else len, "x", 1)
