# E202 the attribute '__closure__' is not allowed
class Runnable:
    def process(self, queries):
        return (lambda: self).__closure__[0].cell_contents
