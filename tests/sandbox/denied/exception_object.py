# AttributeError: 'obj' is not accessible in a Runnable
class Runnable:
    def process(self, queries):
        try:
            self.missing
        except AttributeError as err:
            return err.obj
