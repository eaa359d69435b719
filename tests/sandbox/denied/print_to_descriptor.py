# TypeError: print() got an unexpected keyword argument 'fd'
class Runnable:
    def process(self, queries):
        print("x", fd=1)
