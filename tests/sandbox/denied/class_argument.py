# E202 the class argument 'size' is not allowed
class Runnable:
    def process(self, queries):
        class Base:
            pass

        class Derived(Base, size=1):
            pass
