# AttributeError: a module's attributes cannot be set in a Runnable
class Runnable:
    def process(self, queries):
        for json.dumps in [str]:
            pass
        return json.dumps({})
