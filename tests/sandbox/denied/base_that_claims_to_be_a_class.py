# TypeError: a class in a Runnable cannot derive from
class Base:
    pass


class Claimant:
    def __hash__(self):
        return hash(Base)

    def __eq__(self, other):
        return True


class Runnable:
    def process(self, queries):
        class Derived(Claimant()):
            pass

        return [Derived]
