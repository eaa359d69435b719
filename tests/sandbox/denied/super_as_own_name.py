# E202 'super' as a name of your own is not allowed
class Runnable:
    def process(self, queries):
        super = queries
        return super
