# E202 '__getattribute__' as a name is not allowed. Use __getattr__, a dict, or properties.
class Runnable:
    def process(self, queries):
        class Proxy:
            def __getattribute__(self, name):
                return 1
