# AttributeError: module 'runnable.time' has no attribute 'sys'
class Runnable:
    def process(self, queries):
        return time.sys
