class Runnable:
    def process(self, queries):
        kinds = []

        class Plugin:
            def __init__(self):
                kinds.append(type(self).__name__)

        class Left(Plugin):
            pass

        Left()
        return kinds
