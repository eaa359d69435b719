# AttributeError: module 'runnable.string' has no attribute 'Formatter'
class Runnable:
    def process(self, queries):
        import string

        return string.Formatter().get_field("0.__class__", [1], {})
