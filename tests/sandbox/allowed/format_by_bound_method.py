class Runnable:
    def process(self, queries):
        def shout(text):
            return text.upper()

        method = self.process
        return [type(method) is type(self.process), shout("a"), callable(method)]
