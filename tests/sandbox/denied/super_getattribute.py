# E202 super().__getattribute__ is not allowed. Use getattr().
class Runnable:
    def process(self, queries):
        return super().__getattribute__("__dict__")
