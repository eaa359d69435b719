# E201 cannot assign to expression
class Runnable:
    def process(self, queries):
        ~write = 1
