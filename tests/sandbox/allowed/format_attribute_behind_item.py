class Runnable:
    def process(self, queries):
        return "{0[:]}".format({":": 1})
