class Base:
    pass


class Runnable:
    def process(self, queries):
        class Derived(Base):
            pass

        return [issubclass(Derived, Base), Derived.__name__]
