# E202 '**' in a class statement is not allowed. Use inheritance or a class decorator.
class Runnable:
    def process(self, queries):
        class Base:
            pass

        class Derived(Base, **{"metaclass": type}):
            pass
