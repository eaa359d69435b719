# E202 '__getattribute__' as a name is not allowed
class Runnable:
    def process(self, queries):
        class Proxy:
            __getattribute__ = lambda self, name: 1
