# AttributeError: 'mro' is not accessible in a Runnable; ask with isinstance()
class Runnable:
    def process(self, queries):
        return list[int].mro()
