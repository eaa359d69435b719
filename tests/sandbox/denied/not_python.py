# E201 invalid syntax
class Runnable:
    def process(self, queries):
        return 1 +* 2
