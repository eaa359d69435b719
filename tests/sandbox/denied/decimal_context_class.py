# AttributeError: 'mro' is not accessible in a Runnable
class Runnable:
    def process(self, queries):
        import decimal

        return type(decimal.getcontext()).mro()
