class Runnable:
    def process(self, queries):
        class Base:
            def __init__(self, *args):
                self.args = args

            def __repr__(self):
                return "Base"

        class Derived(Base):
            def __init__(self):
                super().__init__(1, 2)

            def __repr__(self):
                return "Derived of " + super().__repr__()

        return [Derived().args, repr(Derived())]
