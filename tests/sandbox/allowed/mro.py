class Runnable:
    def process(self, queries):
        class Base:
            pass

        class Derived(Base):
            pass

        return [issubclass(Derived, Base), isinstance(Derived(), (Base, int))]
