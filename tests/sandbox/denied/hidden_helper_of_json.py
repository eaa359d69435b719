# TypeError: JSONEncoder.__init__() is for an instance of a class derived from it
class Runnable:
    def process(self, queries):
        json.JSONEncoder.__init__(json, default=print)
