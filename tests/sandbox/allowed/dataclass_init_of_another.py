class Runnable:
    def process(self, queries):
        class Base:
            def __init__(self, x):
                self.x = x

        class Derived(Base):
            def __init__(self, x, y):
                Base.__init__(self, x)
                self.y = y

        derived = Derived(1, 2)
        return [derived.x, derived.y]
